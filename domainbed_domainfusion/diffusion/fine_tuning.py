"""Fine-tuning of the diffusion model's U-Net on some images, in a copy: the shared model stays as it is."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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


class Pictures(NamedTuple):
    """The images of one domain."""

    number: int
    item: Callable[[int], tuple[Tensor, int]]  # index below `number` → (3, S, S) in [-1, 1], and its prompt's number


class Noised(NamedTuple):
    """A minibatch for the U-Net."""

    latents: Tensor  # z_t (B, C, h, w)
    t: Tensor  # (B,)
    conditions: Tensor  # (B, L, D)
    target: Tensor  # (B, C, h, w), what the U-Net should predict


def fine_tuned(
    ldm: LatentDiffusion,
    embeddings: Tensor,
    domains: Sequence[Pictures],
    *,
    steps: int,
    rate: float,
    batch: int,
    identity: tuple,
    name: str = "",
    variance: float = 0.0,
    network: Callable[[Any], Any] = lambda unet: unet,
) -> LatentDiffusion:
    """The same model with a U-Net that was trained on the domains by its own loss: L_d = mean((ε − ε_φ(z_t, t, c))²).

    The mean of L_d over the domains is minimised, plus `variance` times their variance (with G − 1 for G domains).
    z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, z a sample of the VAE's posterior, t uniform. AdamW with the learning rate `rate` and
    torch's defaults, in float32 at least. VAE and text encoder are not trained. A model that predicts v is trained to
    predict v (`LatentDiffusion.target`).

    embeddings: (n, L, D), of the prompts. batch: images of each domain in a step, drawn uniformly with replacement.
    identity: of all random numbers, so the global generators do not move. name: for the progress bar.
    network: the trained U-Net → what predicts with it, and stands in its place in the model that is returned.
    Raises InputError if not even one image fits into memory. See also `check`.
    """
    unet = ldm.trainable_unet()
    predictor, weights = network(unet), list(unet.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate)
    limit: int | None = None
    for step in trange(steps, desc=f"fine-tuning {name}", leave=False, file=sys.__stderr__, disable=None):
        generator = generator_of(*identity, step)
        noised = _noised(ldm, embeddings, *_drawn(domains, batch, generator), generator)
        factors, limit = _factors(predictor, noised, len(domains), variance, limit)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        add_gradient = partial(_add_gradient, predictor, weights, noised, factors)
        _, limit = in_micro_batches(add_gradient, len(factors), limit)
        optimizer.step()
    return ldm.with_unet(predictor)


def _drawn(domains: Sequence[Pictures], batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(domains × batch, 3, S, S) and the numbers of their prompts, those of a domain together."""
    items = [
        domain.item(i)
        for domain in domains
        for i in torch.randint(domain.number, (batch,), generator=generator).tolist()
    ]
    return torch.stack([image for image, _ in items]), torch.tensor([prompt for _, prompt in items])


@torch.no_grad()
def _noised(
    ldm: LatentDiffusion, embeddings: Tensor, images: Tensor, prompts: Tensor, generator: torch.Generator
) -> Noised:
    """Images (B, 3, S, S) noised, in float32 at least; drawn on the CPU."""
    precision = torch.promote_types(ldm.dtype, torch.float32)
    parts, _ = in_micro_batches(lambda part: _moments(ldm.posterior(images[part])), len(images))
    mean, std = (torch.cat(part).to(precision) for part in zip(*parts))
    sampled, noise = (torch.randn(mean.shape, generator=generator).to(mean) for _ in range(2))
    t = torch.randint(ldm.num_train_timesteps, (len(images),), generator=generator).to(mean.device)
    alphas = ldm.alphas_cumprod.to(precision)[t][:, None, None, None]
    latents = (mean + std * sampled) * ldm.scaling_factor
    conditions = embeddings[prompts.to(embeddings.device)].to(mean)
    z_t = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    return Noised(z_t, t, conditions, ldm.target(latents, noise, t))


def _moments(posterior: Any) -> tuple[Tensor, Tensor]:
    return posterior.mean, posterior.std


@torch.no_grad()
def _factors(
    predictor: Any, noised: Noised, domains: int, variance: float, limit: int | None
) -> tuple[Tensor, int | None]:
    """What an image's error counts in the loss, (B,): the loss has the gradient of Σ factor_i · error_i.

    For the variance the errors must be known, which takes a pass without gradients. Also the limit of micro-batches.
    """
    count = len(noised.t)
    if domains == 1 or variance == 0:
        return noised.latents.new_full((count,), 1 / count), limit
    parts, limit = in_micro_batches(lambda part: _errors(predictor, noised, part), count, limit)
    of_domains = torch.cat(parts).unflatten(0, (domains, -1)).mean(1)
    slopes = 1 / domains + variance * 2 / (domains - 1) * (of_domains - of_domains.mean())
    return slopes.repeat_interleave(count // domains) / (count // domains), limit


@torch.enable_grad()
def _add_gradient(predictor: Any, weights: list[Tensor], noised: Noised, factors: Tensor, part: slice) -> None:
    """Add to each weight's gradient that of a part of the batch. If the memory does not suffice, nothing is added."""
    loss = (factors[part] * _errors(predictor, noised, part)).sum()
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
        assert weight.grad is not None
        weight.grad.add_(gradient)


def _errors(predictor: Any, noised: Noised, part: slice) -> Tensor:
    """The mean squared error of each of these images' predictions, (n,)."""
    latents, t, conditions, target = (each[part] for each in noised)
    COUNT.add(len(t))
    return (predictor(latents, t, encoder_hidden_states=conditions).sample - target).square().flatten(1).mean(1)


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
        networks = "a U-Net" if copies == 1 else f"{copies} U-Nets"
        raise InputError(
            f"Fine-tuning {networks} of {weights:,} weights takes {needed / 2**30:.1f} GiB at least, and "
            f"{free / 2**30:.1f} GiB are free: {remedy}."
        )


def unet_weights(model: Path) -> int:
    """The number of weights of a resolved model's U-Net, from the files' headers."""
    if model.is_file():
        prefix = single_file.PREFIXES["unet"]
        shapes = [entry["shape"] for name, entry in header(model).items() if name.startswith(prefix)]
    else:
        shapes = [entry["shape"] for file in weight_files(model / "unet") for entry in header(file).values()]
    return sum(map(math.prod, shapes))
