"""The LDM's networks, read from a folder in diffusers' layout or from a single checkpoint, frozen and in eval mode.

Networks are typed `Any`: the types in diffusers and transformers differ between their versions.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..errors import InputError
from ..seeding import preserved_rng
from . import single_file
from .source import weight_files
from .weights import header


def unet_and_vae(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The U-Net and the VAE from `path`, which `source.resolve_source` returned."""
    if path.is_file():
        return (
            _from_checkpoint(UNet2DConditionModel, path, "unet", dtype),
            _from_checkpoint(AutoencoderKL, path, "vae", dtype),
        )
    # low_cpu_mem_usage needs the package accelerate. Without it, the default prints a hint at every load.
    options = {"use_safetensors": True, "local_files_only": True, "torch_dtype": dtype, "low_cpu_mem_usage": False}
    networks = []
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        check_shapes(partial(kind.from_config, kind.load_config(path / part)), path / part)
        networks.append(frozen(kind.from_pretrained(path, subfolder=part, **options)))
    return networks[0], networks[1]


def text_encoder(path: Path, dtype: torch.dtype) -> Any:
    """CLIP's text model from `path`. For float64 it stays in float32: older transformers cannot mask in float64."""
    encoder: Any
    with _no_progress_bar():
        if path.is_file():
            config = CLIPTextConfig.from_pretrained(single_file.CONFIGS / "text_encoder")
            encoder = CLIPTextModel.from_pretrained(None, config=config, state_dict=_tensors(path, "text_encoder"))
        else:
            config = CLIPTextConfig.from_pretrained(path / "text_encoder")
            check_shapes(partial(CLIPTextModel, config), path / "text_encoder")
            encoder = CLIPTextModel.from_pretrained(path / "text_encoder", use_safetensors=True, local_files_only=True)
    return frozen(encoder.to(torch.float32 if dtype == torch.float64 else dtype))


def check_shapes(build: Callable[[], nn.Module], part: Path) -> None:
    """Raise InputError unless a part's files have the shapes and the size that its config asks for. No tensor is read.

    build: makes the network from its config. It is called on the meta device, where nothing is allocated. Older files
    have other names for some tensors, so names are not compared.
    """
    try:
        with torch.device("meta"), preserved_rng():
            network = build()
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, OverflowError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{part}/config.json describes no network ({reason[0]}): fetch the model again.") from error
    found = {name: entry["shape"] for file in weight_files(part) for name, entry in header(file).items()}
    for name, tensor in network.named_parameters():
        if found.get(name, shape := list(tensor.shape)) != shape:
            raise InputError(
                f"The weight {name} in {part} has the shape {found[name]}, and its config.json asks for {shape}: fetch "
                "the model again."
            )
    asked, given = sum(x.numel() for x in network.parameters()), sum(map(math.prod, found.values()))
    if asked > given:
        raise InputError(
            f"The files in {part} have {given:,} weights, and its config.json asks for {asked:,}: fetch the model "
            "again."
        )


def tiny_half(folder: Path, half: str, dtype: torch.dtype) -> Any:
    """A distilled autoencoder with its "decoder" or its "encoder" alone."""
    tiny = AutoencoderTiny.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
    )
    delattr(tiny, {"decoder": "encoder", "encoder": "decoder"}[half])
    return frozen(tiny)


def frozen(network: Any) -> Any:
    """The network in eval mode, without gradients for its parameters."""
    return network.eval().requires_grad_(False)


def _from_checkpoint(kind: Any, path: Path, part: str, dtype: torch.dtype) -> Any:
    """One network by diffusers' own conversion.

    Raises InputError if the file lacks a weight: the conversion would silently leave it at its random initial value.
    """
    tensors = _tensors(path, part)
    network = kind.from_single_file(tensors, config=str(single_file.CONFIGS), subfolder=part, local_files_only=True)
    if len(tensors) < len(network.state_dict()):
        raise InputError(
            f"{path} is no whole Stable Diffusion 1.x checkpoint: its {single_file.PREFIXES[part]}* are "
            f"{len(tensors)} tensors of {len(network.state_dict())}; fetch another one."
        )
    return frozen(nn.Module.to(network, dtype))  # diffusers' own `to` warns that it keeps nothing in float32


def _tensors(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint; the prefix is cut off for the text encoder."""
    prefix = single_file.PREFIXES[part]
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118 - not a dict
    if part == "text_encoder":
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if "position_ids" not in name}
    return tensors


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hides transformers' progress bar, which would stand between the lines that a run prints."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
