"""The encoder of a distilled autoencoder, which Latent Distillation may use in the VAE's place.

At 224 x 224 pixels the VAE's encoder is most of Latent Distillation's work. A distilled one, such as TAESD's, makes
nearly the same latents for a small part of it.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from .dual import TensorOrDual


class TinyEncoder:
    """Not an `nn.Module`, as `model.LatentDiffusion` is none: a module that holds it does not save its weights."""

    def __init__(self, tiny: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Use `LatentDiffusion.tiny_encoder`: it keeps one encoder per process."""
        self._tiny, self.device, self.dtype = tiny, device, dtype

    @staticmethod
    @cache
    def load(folder: Path, device: torch.device, dtype: torch.dtype) -> "TinyEncoder":
        """From a folder that `source.resolve_tiny_half` has checked."""
        from . import loading  # here, because diffusers takes seconds to import

        tiny = loading.tiny_half(folder, "encoder", dtype).to(device)
        if device.type == "cpu":  # see `model.LatentDiffusion`
            tiny.to(memory_format=torch.channels_last)
        return TinyEncoder(tiny, device, dtype)

    def encode(self, images: TensorOrDual) -> TensorOrDual:
        """Scaled latents z (B, C, S / f, S / f) of images (B, 3, S, S) in [-1, 1]; differentiable in images."""
        return self._tiny.encode(images.to(self.device, self.dtype)).latents * self._tiny.config.scaling_factor
