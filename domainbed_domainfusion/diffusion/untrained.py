"""A diffusion model that has learned nothing: the control for what φ's training brings.

    python -m domainbed_domainfusion.diffusion.untrained pocket untrained-ldm

writes a folder with the architecture, tokenizer and schedule of a model, and with weights as they are before training.
Name the folder in the hparam `ldm`.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from ..errors import InputError, exit_status
from ..seeding import preserved_rng
from .source import resolve_source


def write_untrained(source: str, folder: Path, seed: int = 0) -> Path:
    """Write an untrained twin of the model `source` (a folder, a hub id or "pocket") to `folder`, and return it.

    The weights are the libraries' own initial ones under torch's generator with `seed`. Raises InputError if `folder`
    exists, or if `source` cannot be used or is a single file, which has no configuration of its own.
    """
    path = resolve_source(source)
    if path.is_file():
        raise InputError(f"{source} is a single file: name a model's folder or hub id.")
    if folder.exists():
        raise InputError(f"{folder} exists: name a folder that does not.")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(path, unfinished, ignore=shutil.ignore_patterns("*.safetensors", "*.png", "README.md"))
    with preserved_rng():
        torch.manual_seed(seed)
        for part, network in _networks(path).items():
            network.save_pretrained(unfinished / part, safe_serialization=True)
    unfinished.rename(folder)
    return folder


def _networks(path: Path) -> dict:
    """The networks with their initial weights, by the names of their folders."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return {
        "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(path / "unet")),
        "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(path / "vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(path / "text_encoder")),
    }


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Write a diffusion model with untrained weights.")
    parser.add_argument("ldm", help="a model's folder or hub id, or pocket: whose architecture")
    parser.add_argument("folder", type=Path, help="the folder to write")
    arguments = parser.parse_args()
    print(write_untrained(arguments.ldm, arguments.folder))


if __name__ == "__main__":
    sys.exit(exit_status(main))
