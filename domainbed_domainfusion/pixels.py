"""Pixel ranges of the classifier, the diffusion model and the store, and the conversions between them.

- classifier: (B, C, H, W), normalised with the transform's mean and std (image folders) or raw in [0, 1];
- diffusion model: (B, 3, S, S) in [-1, 1];
- store: (B, 3, S, S) uint8.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms


class PixelRange:
    """The classifier's input: its shape (C, H, W), and the mean and std of the host's Normalize transform."""

    def __init__(self, input_shape: tuple, mean: tuple | None = None, std: tuple | None = None):
        self.channels, self.height, self.width = input_shape
        self.mean = torch.tensor(mean or [0.0] * self.channels).view(-1, 1, 1)
        self.std = torch.tensor(std or [1.0] * self.channels).view(-1, 1, 1)

    @classmethod
    def of(cls, input_shape: tuple, dataset: Any | None) -> "PixelRange":
        """Read mean and std from the Normalize transform of the host's dataset. Without it, pixels are in [0, 1]."""
        for environment in getattr(dataset, "datasets", ()):
            normalize = _find_normalize(transform_of(environment))
            if normalize is not None:
                return cls(input_shape, tuple(normalize.mean), tuple(normalize.std))
        return cls(input_shape)

    def to_diffusion(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """The classifier's (B, C, H, W) → (B, 3, size, size) in [-1, 1]. Values outside the pixel range are clipped."""
        x = (x.float() * self.std.to(x.device) + self.mean.to(x.device)).clamp(0, 1)
        return _resize(to_rgb(x), (size, size)) * 2 - 1

    def to_classifier(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [-1, 1] → the classifier's input, resized and normalised as by the evaluation transform."""
        x = from_rgb(_resize(images.float() / 2 + 0.5, (self.height, self.width)), self.channels)
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


def to_store(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) in [-1, 1] → uint8 on the CPU, rounded to the nearest level."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def from_store(images: torch.Tensor) -> torch.Tensor:
    """uint8 → float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_rgb(x: torch.Tensor) -> torch.Tensor:
    """(…, C, H, W) → three channels: grey is repeated, two channels (ColoredMNIST) get an empty third."""
    channels = x.shape[-3]
    if channels == 1:
        return x.expand(*x.shape[:-3], 3, *x.shape[-2:])
    return torch.cat([x, torch.zeros_like(x[..., :1, :, :])], dim=-3) if channels == 2 else x


def from_rgb(x: torch.Tensor, channels: int) -> torch.Tensor:
    """The inverse of `to_rgb`: one channel is the mean of the three, two channels are the first two."""
    return x.mean(dim=-3, keepdim=True) if channels == 1 else x[..., :channels, :, :]


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of pairs of images in [-1, 1], in dB: (…, 3, S, S) twice → (…). The peak is 2."""
    return 10 * torch.log10(4 / (images - others).square().flatten(-3).mean(-1))


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def _find_normalize(transform: Any) -> transforms.Normalize | None:
    if isinstance(transform, transforms.Normalize):
        return transform
    steps = transform.transforms if isinstance(transform, transforms.Compose) else ()
    return next((found for found in map(_find_normalize, steps) if found is not None), None)


def without_transform(dataset: Dataset) -> Dataset:
    """The same dataset without the host's transform: it gives PIL images, or tensors if there is no transform."""
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([without_transform(part) for part in dataset.datasets])
    if isinstance(dataset, Subset):
        return Subset(without_transform(dataset.dataset), dataset.indices)
    if getattr(dataset, "transform", None) is None:
        return dataset
    bare: Any = copy.copy(dataset)  # shallow: the host's own dataset keeps its transform
    bare.transform = None
    return bare


def transform_of(dataset: Dataset) -> Any:
    """The host's transform of an environment, or None for tensors.

    A training environment has the host's training transform, a test environment its evaluation transform.
    """
    if isinstance(dataset, ConcatDataset):
        return transform_of(dataset.datasets[0])
    if isinstance(dataset, Subset):
        return transform_of(dataset.dataset)
    return getattr(dataset, "transform", None)


def stored_version(image: Any, size: int) -> torch.Tensor:
    """One raw example, PIL or (C, H, W) tensor in [0, 1] → (3, size, size) uint8, resized as diffusers does it."""
    if isinstance(image, Image.Image):
        pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    unit = _resize(to_rgb(image.float().clamp(0, 1))[None], (size, size))[0]
    return (unit * 255).round().to(torch.uint8)


def training_version(stored: torch.Tensor, dataset: Dataset, pixel_range: PixelRange) -> torch.Tensor:
    """One stored image → the classifier's input, by the host's training transform, or resized if it has none."""
    transform = transform_of(dataset)
    if transform is None:
        return pixel_range.to_classifier(from_store(stored)[None])[0]
    return transform(Image.fromarray(stored.permute(1, 2, 0).numpy()))
