"""Diffusion-Driven Adaptation's projection (DDA; Gao et al., CVPR 2023): an image is regenerated, its coarse part kept.

The image is noised to a step of a short chain. Every step back to the clean image is corrected, so that the coarse part
of the predicted clean image stays that of the original.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .micro_batches import in_micro_batches
from .model import LatentDiffusion


class Projection:
    """z_{t−1} = ẑ_{t−1} − w ∇_{z_t} ‖LP(z) − LP(ẑ_0(z_t))‖₂ at every step (DDA, Algorithm 1), in latents.

    ẑ_{t−1} is a sample of DDPM's reverse step of a chain with fewer timesteps, ẑ_0 the clean latents that it predicts,
    and LP a low-pass filter: bicubic down by a factor and up again. The gradient goes through the U-Net. The norm is of
    each image, so images do not depend on each other.

    Ours: the authors work on pixels, with a model that has learned its variances. Here the variance is the smaller one
    of Ho et al. 2020, and nothing is clipped.
    """

    def __init__(
        self,
        ldm: LatentDiffusion,
        embedding: Tensor,
        *,
        steps: int,
        noised: int,
        weight: float,
        factor: int,
        batch: int | None = None,
    ):
        """embedding: (1, L, D), the condition, that of the empty prompt. steps: of the whole chain. noised: steps that
        an image is noised and denoised, from 1 to `steps`. weight: w. factor: of LP, in latents.
        batch: images at once, None for all. If the memory does not suffice it is halved for good.
        """
        self.ldm, self.embedding, self.steps, self.noised = ldm, embedding, steps, noised
        self.weight, self.factor, self.batch = weight, factor, batch

    def __call__(self, images: Tensor, seeds: list[int]) -> Tensor:
        """images (B, 3, S, S) in [-1, 1], a seed for each → the same shape and range, float32.

        Raises InputError if activations or gradients overflow in the LDM's dtype (float16).
        """
        parts, self.batch = in_micro_batches(lambda part: self._part(images[part], seeds[part]), len(seeds), self.batch)
        return torch.cat(parts)

    def _part(self, images: Tensor, seeds: list[int]) -> Tensor:
        precision = torch.promote_types(self.ldm.dtype, torch.float32)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            reference = self.ldm.encode(images).to(precision)
        coarse = self._low_pass(reference)
        embeddings = self.embedding.expand(len(images), -1, -1)
        scheduler = self.ldm.scheduler("ddim")
        scheduler.set_timesteps(self.steps, device=self.ldm.device)
        timesteps = scheduler.timesteps[-self.noised :]

        z = scheduler.add_noise(reference, _noise(generators, reference), timesteps[:1].repeat(len(images)))
        for t in timesteps:
            noise = _noise(generators, z) if t != timesteps[-1] else torch.zeros_like(z)
            with torch.enable_grad():
                z.requires_grad_()
                predicted = self.ldm.predict(z, t.expand(len(z)), embeddings).to(precision)
                step = scheduler.step(predicted, t, z, eta=1.0, variance_noise=noise)  # with eta 1 DDIM is DDPM
                distance = (coarse - self._low_pass(step.pred_original_sample)).flatten(1).norm(dim=1)
                (gradient,) = torch.autograd.grad(distance.sum(), z)
            z = step.prev_sample.detach() - self.weight * gradient
        projected = self.ldm.decode(z)
        if not projected.isfinite().all():
            raise InputError(
                f"Projected images are not finite in {self.ldm.dtype}: run the LDM in bfloat16 or float32."
            )
        return projected

    def _low_pass(self, z: Tensor) -> Tensor:
        """LP: (B, C, h, w) → the same shape."""
        size = z.shape[-2:]
        smaller = [max(1, side // self.factor) for side in size]
        down = F.interpolate(z, smaller, mode="bicubic", antialias=True, align_corners=False)
        return F.interpolate(down, size, mode="bicubic", antialias=True, align_corners=False)


def _noise(generators: list[torch.Generator], like: Tensor) -> Tensor:
    """A draw from each generator, on the CPU so that devices agree: (B, C, h, w)."""
    return torch.stack([torch.randn(like.shape[1:], generator=each) for each in generators]).to(like)
