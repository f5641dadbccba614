"""The references of the benchmarks: torch.func.jvp and diffusers' image-to-image pipeline.

They share only the frozen networks with the code that is measured.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from domainbed_domainfusion.diffusion.model import LatentDiffusion

from .models import Model


class Draw(NamedTuple):
    """Latent Distillation's random draws for a batch: one (t, ε) per image, seeded by the image's seed."""

    t: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)

    @classmethod
    def of(cls, ldm: LatentDiffusion, image_size: int, seeds: list[int], dtype: torch.dtype) -> "Draw":
        """One generator for each image, with the image's seed. It draws t first, then the noise in float32."""
        side = image_size // ldm.scale_factor
        ts, noises = [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            ts.append(torch.randint(ldm.num_train_timesteps, (), generator=generator))
            noises.append(torch.randn(ldm.latent_channels, side, side, generator=generator))
        return cls(torch.stack(ts).to(ldm.device), torch.stack(noises).to(ldm.device, dtype))


def noise_predictions(
    ldm: LatentDiffusion, images: Tensor, p: Tensor, embeddings: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Algorithm 2, lines 1 to 5 for contrast: (z_t, ε_φ(z_t, t, c)) of p · x, both (B, C, h, w)."""
    alphas = ldm.alphas_cumprod.to(draw.noise.dtype)[draw.t][:, None, None, None]
    latents = ldm.encode(p[:, None, None, None] * images).to(draw.noise.dtype)
    noised = alphas.sqrt() * latents + (1 - alphas).sqrt() * draw.noise
    return noised, ldm.predict_noise(noised, draw.t, embeddings).to(draw.noise.dtype)


class Derivatives(NamedTuple):
    """Latent Distillation's value, and its derivatives with respect to p for both values of ld_gradient."""

    value: Tensor  # (B,)
    full: Tensor  # (B,) ∂LD_i/∂p_i
    sds: Tensor  # (B,) without the U-Net's Jacobian
    full_field: Tensor  # (B, C, h, w) ∂ε_φ/∂p; `full` is its inner product with the residual
    sds_field: Tensor  # (B, C, h, w) ∂z_t/∂p; `sds` is its inner product with the residual


def stock_forward_mode(ldm: LatentDiffusion, images: Tensor, p: Tensor, embeddings: Tensor, draw: Draw) -> Derivatives:
    """The derivatives by torch.func.jvp, with unfused attention, because the fused kernels have no forward mode."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        (_, predicted), (latent_slope, predicted_slope) = torch.func.jvp(
            lambda q: noise_predictions(ldm, images, q, embeddings, draw), (p,), (torch.ones_like(p),)
        )
    residual = predicted - draw.noise
    return Derivatives(
        residual.square().flatten(1).mean(1),
        (2 * residual * predicted_slope).flatten(1).mean(1),
        (residual * latent_slope).flatten(1).mean(1),
        predicted_slope,
        latent_slope,
    )


class Pipeline:
    """diffusers' StableDiffusionImg2ImgPipeline with text prompts, as in its documentation."""

    def __init__(self, model: Model, device: str, dtype: str) -> None:
        from diffusers import StableDiffusionImg2ImgPipeline

        self.model = model
        self._pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
            model.folder, torch_dtype=getattr(torch, dtype), safety_checker=None, requires_safety_checker=False
        )
        self._pipeline.to(device).set_progress_bar_config(disable=True)

    def with_scheduler(self, name: str, **options) -> "Pipeline":
        """The same networks and noise schedule with another scheduler of diffusers, given by class name."""
        import diffusers

        other = copy.copy(self)
        scheduler = getattr(diffusers, name).from_config(self._pipeline.scheduler.config, **options)
        other._pipeline = diffusers.StableDiffusionImg2ImgPipeline(
            **{**self._pipeline.components, "scheduler": scheduler}, requires_safety_checker=False
        )
        other._pipeline.set_progress_bar_config(disable=True)
        return other

    def __call__(self, images: Tensor, labels: Tensor, seeds: list[int], **options) -> Tensor:
        """One call for a batch: images (B, 3, S, S) in [-1, 1] → generated ones of that shape, float32, on the CPU."""
        prompts = [f"a photo of a {self.model.class_names[label]}" for label in labels.tolist()]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = self._pipeline(prompts, image=images / 2 + 0.5, generator=generators, output_type="pt", **options)
        return made.images.float().cpu() * 2 - 1

    def one_at_a_time(self, images: Tensor, labels: Tensor, seeds: list[int], **options) -> Tensor:
        """One call for each image, as in a loop over a dataset."""
        return torch.cat(
            [self(images[i : i + 1], labels[i : i + 1], seeds[i : i + 1], **options) for i in range(len(images))]
        )

    @property
    def evaluations(self) -> int:
        """The number of U-Net calls in the latest pipeline call. Each has two rows per image."""
        return self._pipeline.num_timesteps
