"""How Latent Distillation corrupts an image by the classifier's confidence p: Algorithm 2, line 1, and Table 4.

Images (B, 3, S, S) in [-1, 1], confidence p (B,) in [0, 1], one generator per image. p = 1 leaves the image as it
is, p = 0 corrupts it fully. All are differentiable in p. The paper gives a formula for contrast only (p · x). Its Table
4 names the others; their formulas are ours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR = 1 / 16  # σ of the full blur, in image sides
BLOCK = 1 / 8  # side of a masked block, in image sides
SOFTNESS = 0.1  # the width in p over which a pixel goes from untouched to replaced, see `_replaced`

Generators = list[torch.Generator]


def corrupt(images: Tensor, confidence: Tensor, kind: str, generators: Generators) -> Tensor:
    """x' (B, 3, S, S): `images` corrupted as `kind` says. Raises KeyError for a kind that is not in CORRUPTIONS."""
    return CORRUPTIONS[kind](images, confidence, generators)


def _none(images: Tensor, confidence: Tensor, generators: Generators) -> Tensor:
    return images


def _contrast(images: Tensor, confidence: Tensor, generators: Generators) -> Tensor:
    """p · x: towards mid-grey."""
    return images * _per_image(confidence)


def _blur(images: Tensor, confidence: Tensor, generators: Generators) -> Tensor:
    """Gaussian blur of σ = (1 − p) · S / 16 with reflection at the borders.

    The kernel is exp(−k² / 2σ²), normalised. (S/16)² · 1e-6 is added to σ², so that 1/σ² stays finite at p = 1. There
    every weight but the middle one is zero.
    """
    size = images.shape[-1]
    radius = min(size - 1, int(3 * BLUR * size + 0.5))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=confidence.dtype)
    variance = ((1 - confidence) ** 2 + 1e-6) * (BLUR * size) ** 2  # (B,)
    kernel = (-(offsets**2) / (2 * variance[:, None])).softmax(dim=-1).to(images.dtype)  # (B, 2 radius + 1)
    for axis in (-1, -2):
        images = _filtered(images.transpose(axis, -1), kernel, radius).transpose(axis, -1)
    return images


def _filtered(images: Tensor, kernel: Tensor, radius: int) -> Tensor:
    """The rows of each image convolved with that image's kernel; kernel: (B, 2 radius + 1)."""
    batch, channels, rows, columns = images.shape
    padded = F.pad(images, (radius, radius, 0, 0), mode="reflect")
    weight = kernel[:, None, None, :].repeat_interleave(channels, dim=0)
    filtered = F.conv2d(
        padded.reshape(1, batch * channels, rows, columns + 2 * radius), weight, groups=batch * channels
    )
    return filtered.reshape(batch, channels, rows, columns)


def _pepper(images: Tensor, confidence: Tensor, generators: Generators) -> Tensor:
    """A share 1 − p of the pixels becomes black."""
    size = images.shape[-1]
    return _replaced(images, confidence, _uniform(generators, size, size), images.new_tensor(-1.0))


def _mask(images: Tensor, confidence: Tensor, generators: Generators) -> Tensor:
    """A share 1 − p of all blocks of side S / 8 becomes mid-grey."""
    size = images.shape[-1]
    side = max(1, int(BLOCK * size))
    blocks = -(-size // side)
    field = _uniform(generators, blocks, blocks).repeat_interleave(side, -2).repeat_interleave(side, -1)
    return _replaced(images, confidence, field[..., :size, :size], images.new_tensor(0.0))


def _replaced(images: Tensor, confidence: Tensor, field: Tensor, value: Tensor) -> Tensor:
    """`value` where the uniform field u exceeds p, blended over a width of SOFTNESS in p so that a gradient exists.

    The weight of x is clamp((p − (1 − s) u) / s, 0, 1) with s = SOFTNESS: 1 everywhere at p = 1, 0 everywhere at p = 0.
    """
    field = field.to(images.device, confidence.dtype)
    weight = ((_per_image(confidence) - (1 - SOFTNESS) * field) / SOFTNESS).clamp(0, 1).to(images.dtype)
    return weight * images + (1 - weight) * value


def _uniform(generators: Generators, rows: int, columns: int) -> Tensor:
    """u ~ U[0, 1), (B, 1, rows, columns), drawn from one generator per image."""
    return torch.stack([torch.rand((1, rows, columns), generator=generator) for generator in generators])


def _per_image(confidence: Tensor) -> Tensor:
    return confidence[:, None, None, None]


CORRUPTIONS: dict[str, Callable[[Tensor, Tensor, Generators], Tensor]] = {
    "contrast": _contrast,
    "blur": _blur,
    "pepper": _pepper,
    "mask": _mask,
    "none": _none,
}
