"""The full-size architecture of Stable Diffusion 1.x with random weights: it costs the same time and memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ..pocket.ldm_folder import tokenizer_files
from ..seeding import preserved_rng
from .model import LatentDiffusion
from .single_file import CONFIGS
from .source import WEIGHTS

DTYPE_NAMES = {torch.float32: "F32", torch.int64: "I64"}
TOKENS = 77


def write_random_model(folder: Path, configs: Path = CONFIGS) -> Path:
    """Write a full-size Stable Diffusion folder and return it. Its weights are sparse files and take no disk space.

    configs: a folder with the configuration of each part, by default that of Stable Diffusion 1.x.

    The weights are zeros; `randomise` fills the networks after they are loaded. The tokenizer is the embedded model's,
    which spells out unknown words.
    """
    shutil.copytree(configs, folder, dirs_exist_ok=True)
    for part, network in _networks(configs).items():
        _write_sparse(folder / part / WEIGHTS[part], network.state_dict())
    (folder / "tokenizer").mkdir()
    for name, text in tokenizer_files().items():
        if name == "tokenizer_config.json":
            text = json.dumps({**json.loads(text), "model_max_length": TOKENS})
        (folder / "tokenizer" / name).write_text(text, encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@torch.no_grad()
def randomise(ldm: LatentDiffusion) -> None:
    """Give a model of `write_random_model` small random weights: on zeros a GPU would be faster than on real ones."""
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(ldm.device, ldm.dtype)
    for network in (ldm._unet, ldm._vae):
        for parameter in network.parameters():
            flat = parameter.as_strided((parameter.numel(),), (1,))  # in memory order, which also fits channels_last
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])


def _networks(configs: Path) -> dict[str, torch.nn.Module]:
    """The networks by the names of their folders, on the meta device: no memory for weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with preserved_rng(), torch.device("meta"):
        parts = {
            part: kind.from_config(kind.load_config(configs / part))
            for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
        }
        return {**parts, "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(configs / "text_encoder"))}


def _write_sparse(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """A safetensors file of zeros: the header, then a hole as long as the data."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in weights.items():
        start, end = end, end + weight.numel() * weight.element_size()
        header[name] = {"dtype": DTYPE_NAMES[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
