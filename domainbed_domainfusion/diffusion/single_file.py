"""A Stable Diffusion 1.x checkpoint in one `.safetensors` file, in the layout of the original release.

Such a file holds weights only. The configuration is that of Stable Diffusion 1.x, from the folder `sd1`.
"""

import json
from pathlib import Path

from ..errors import InputError
from .weights import header

CONFIGS = Path(__file__).parent / "sd1"
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
TOKENIZER = "openai/clip-vit-large-patch14"  # the hub id of Stable Diffusion 1.x's text encoder
OTHER_INPUTS = {9: "an inpainting model", 8: "an InstructPix2Pix model", 5: "a depth model", 7: "an upscaler"}


def check_checkpoint(path: Path) -> None:
    """Raise InputError unless `path` is a Stable Diffusion 1.x checkpoint; only its header is read."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file, and pickled checkpoints are never read: give one in "
            "safetensors, or a folder in diffusers' layout."
        )
    tensors = header(path)
    other = _other_model(tensors)
    if other:
        raise InputError(
            f"{path} is not a Stable Diffusion 1.x checkpoint but {other}: use one that is, such as "
            "CompVis/stable-diffusion-v1-4, or the folder of a Stable Diffusion 2.x in diffusers' layout."
        )
    for prefix in PREFIXES.values():
        if not any(name.startswith(prefix) for name in tensors):
            raise InputError(
                f"{path} is no whole Stable Diffusion 1.x checkpoint, it has no {prefix}*: use one with "
                "U-Net, VAE and text encoder, or give the folder of a model in diffusers' layout."
            )


def _other_model(tensors: dict[str, dict]) -> str | None:
    """The kind of another model, judged by tensor names and shapes; None for a Stable Diffusion 1.x."""
    if any(name.startswith("conditioner.") for name in tensors):
        return "an SDXL model"
    if any(name.startswith("cond_stage_model.model.") for name in tensors):
        return "a Stable Diffusion 2 model"
    if any(name.startswith("control_model.") for name in tensors):
        return "a ControlNet"
    config = json.loads((CONFIGS / "unet" / "config.json").read_text("utf-8"))
    unet = {name.removeprefix(PREFIXES["unet"]): entry["shape"] for name, entry in tensors.items()}
    given = unet.get("input_blocks.0.0.weight", [0, config["in_channels"]])[1]
    if given != config["in_channels"]:
        return OTHER_INPUTS.get(given, f"a model of {given} input channels")
    text = {shape[1] for name, shape in unet.items() if name.endswith(".attn2.to_k.weight")}
    if text - {config["cross_attention_dim"]}:
        return f"a model that attends to {max(text)}-dimensional text (Stable Diffusion 2 or SDXL)"
    return None
