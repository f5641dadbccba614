"""A folder in diffusers' layout as the original release's single checkpoint: diffusers' own conversion undone."""

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
VAE = {
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def write_original_checkpoint(folder, path) -> Path:
    """Write the networks of `folder` into the single file `path` and return it."""
    folder, path = Path(folder), Path(path)
    tensors = {}
    for part, convert in (("unet", _unet), ("vae", _vae), ("text_encoder", _text)):
        (weights,) = (folder / part).glob("*.safetensors")
        config = json.loads((folder / part / "config.json").read_text())
        tensors.update(convert(load_file(weights), config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _unet(tensors: dict, config: dict) -> dict:
    return {
        "model.diffusion_model." + _unet_name(name, config["layers_per_block"] + 1, tensors): tensor
        for name, tensor in tensors.items()
    }


def _unet_name(name: str, n: int, tensors: dict) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours):
            return name.replace(ours, theirs)
    if name.startswith("mid_block"):
        _, kind, i, *rest = name.split(".")
        number = 1 if kind == "attentions" else 2 * int(i)
        return (
            _resnet(f"middle_block.{number}", rest)
            if kind == "resnets"
            else ".".join([f"middle_block.{number}", *rest])
        )
    direction, block, kind, i, *rest = name.split(".")
    block, i, down = int(block), int(i), direction == "down_blocks"
    if kind == "downsamplers":
        return f"input_blocks.{n * (block + 1)}.0.op.{rest[-1]}"
    if kind == "upsamplers":
        place = 2 if any(key.startswith(f"up_blocks.{block}.attentions") for key in tensors) else 1
        return f"output_blocks.{n * block + n - 1}.{place}.conv.{rest[-1]}"
    place = f"input_blocks.{1 + n * block + i}" if down else f"output_blocks.{n * block + i}"
    return _resnet(f"{place}.0", rest) if kind == "resnets" else ".".join([f"{place}.1", *rest])


def _resnet(place: str, rest: list) -> str:
    return ".".join([place, RESNET[rest[0]], *rest[1:]])


def _vae(tensors: dict, config: dict) -> dict:
    levels = len(config["block_out_channels"])
    converted = {}
    for name, tensor in tensors.items():
        if ".attentions." in name and name.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # attention by 1x1 convolutions
        for ours, theirs in VAE.items():
            name = name.replace(ours, theirs)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        converted["first_stage_model." + name.replace(".resnets.", ".block.")] = tensor
    return converted


def _text(tensors: dict, config: dict) -> dict:
    return {
        "cond_stage_model.transformer.text_model." + name.removeprefix("text_model."): tensor
        for name, tensor in tensors.items()
    }
