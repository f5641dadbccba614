"""Fine-tuning of the diffusion model's U-Net on some images, in a copy: the shared model stays as it is."""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from ..errors import InputError
from ..seeding import generator_of
from . import single_file
from .evaluations import COUNT
from .memory import free_memory
from .micro_batches import in_micro_batches
from .model import LatentDiffusion
from .source import config_folder, weight_files
from .weights import header

BYTES_OF_TRAINING = 16  # for each weight in float32: itself, its gradient and AdamW's two moments


def fine_tuned(
    ldm: LatentDiffusion,
    embedding: Tensor,
    picture: Callable[[int], Tensor],
    pictures: int,
    *,
    steps: int,
    rate: float,
    batch: int,
    identity: tuple,
    name: str = "",
) -> LatentDiffusion:
    """The same model with a U-Net that was trained on pictures, by its own loss: mean((ε − ε_φ(z_t, t, c))²).

    z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, z a sample of the VAE's posterior, t uniform. AdamW with the learning rate `rate` and
    torch's defaults, in float32 at least. VAE and text encoder are not trained. A model that predicts v is trained to
    predict v (`LatentDiffusion.target`).

    embedding: c (1, L, D). picture: index below `pictures` → (3, S, S) in [-1, 1]; drawn uniformly with replacement.
    identity: of all random numbers, so the global generators do not move. name: for the progress bar.
    Raises InputError if not even one image fits into memory. See also `check`.
    """
    unet = ldm.trainable_unet()
    weights = list(unet.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate)
    limit: int | None = None
    for step in trange(steps, desc=f"fine-tuning {name}", leave=False, file=sys.__stderr__, disable=None):
        generator = generator_of(*identity, step)
        images = torch.stack([picture(i) for i in torch.randint(pictures, (batch,), generator=generator).tolist()])
        noised, t, target = _noised(ldm, images, generator)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        add_gradient = partial(_add_gradient, unet, weights, embedding.to(noised), noised, t, target)
        _, limit = in_micro_batches(add_gradient, batch, limit)
        optimizer.step()
        COUNT.add(batch)
    return ldm.with_unet(unet)


@torch.enable_grad()
def _add_gradient(
    unet: Any, weights: list[Tensor], embedding: Tensor, noised: Tensor, t: Tensor, target: Tensor, part: slice
) -> None:
    """Add to each weight's gradient that of a part of the batch. If the memory does not suffice, nothing is added."""
    conditions = embedding.expand(len(t[part]), -1, -1)
    predicted = unet(noised[part], t[part], encoder_hidden_states=conditions).sample
    loss = (predicted - target[part]).square().mean() * len(t[part]) / len(t)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
        assert weight.grad is not None
        weight.grad.add_(gradient)


@torch.no_grad()
def _noised(ldm: LatentDiffusion, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(z_t (B, C, h, w), t (B,), the U-Net's target) of images (B, 3, S, S), in float32 at least; drawn on the CPU."""
    precision = torch.promote_types(ldm.dtype, torch.float32)
    parts, _ = in_micro_batches(lambda part: _moments(ldm.posterior(images[part])), len(images))
    mean, std = (torch.cat(part).to(precision) for part in zip(*parts))
    sampled, noise = (torch.randn(mean.shape, generator=generator).to(mean) for _ in range(2))
    t = torch.randint(ldm.num_train_timesteps, (len(images),), generator=generator).to(mean.device)
    alphas = ldm.alphas_cumprod.to(precision)[t][:, None, None, None]
    latents = (mean + std * sampled) * ldm.scaling_factor
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise, t, ldm.target(latents, noise, t)


def _moments(posterior: Any) -> tuple[Tensor, Tensor]:
    return posterior.mean, posterior.std


def check(model: Path, copies: int, copy_bytes: int, device: torch.device, remedy: str) -> None:
    """Raise InputError if the U-Net of a resolved model cannot be fine-tuned `copies` times on the device.

    Either it is a latent consistency model, or the memory does not suffice. Counted are the training of one, and all
    copies with `copy_bytes` bytes for each weight. Activations come on top. No weight is read.
    """
    config = json.loads((config_folder(model) / "unet" / "config.json").read_text("utf-8"))
    if config.get("time_cond_proj_dim") is not None:
        raise InputError(
            f"{model} is a latent consistency model, whose U-Net is not trained to predict noise: {remedy}, or use the "
            "model that it was made from."
        )
    weights, free = unet_weights(model), free_memory(device)
    needed = weights * (BYTES_OF_TRAINING + copies * copy_bytes)
    if free is not None and needed > free:
        raise InputError(
            f"Fine-tuning a U-Net of {weights:,} weights for {copies} domains takes {needed / 2**30:.1f} GiB at "
            f"least, and {free / 2**30:.1f} GiB are free: {remedy}."
        )


def unet_weights(model: Path) -> int:
    """The number of weights of a resolved model's U-Net, from the files' headers."""
    if model.is_file():
        prefix = single_file.PREFIXES["unet"]
        shapes = [entry["shape"] for name, entry in header(model).items() if name.startswith(prefix)]
    else:
        shapes = [entry["shape"] for file in weight_files(model / "unet") for entry in header(file).values()]
    return sum(map(math.prod, shapes))
