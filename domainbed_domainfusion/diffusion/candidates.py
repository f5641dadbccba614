"""N_c candidates for a batch of images by image-to-image diffusion: Algorithm 1, line 7."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..errors import InputError
from .micro_batches import in_micro_batches
from .model import LatentDiffusion
from .prompted import PromptedModel
from .prompts import Prompts


@dataclass
class Candidates:
    """N candidates for each of B images."""

    images: Tensor  # (B, N, 3, S, S) float32 in [-1, 1]
    latents: Tensor  # (B, N, C, h, w), scaled, in the LDM's dtype


class CandidateSampler:
    """Image-to-image diffusion as diffusers' StableDiffusionImg2ImgPipeline does it, for many images at once.

    Each candidate has its own seed, and a `torch.Generator` on the CPU: the pipeline's result for the same image,
    prompt and generator is the same up to float noise, whatever else is in the batch.
    """

    def __init__(
        self,
        ldm: LatentDiffusion,
        prompts: Prompts,
        steps: int = 12,
        strength: float = 0.8,
        guidance_scale: float = 7.5,
        scheduler: str = "ddim",
        batch_size: int | None = None,
        timestep_spacing: str = "leading",
        guidance_interval: float = 1.0,
    ) -> None:
        """steps: of the whole schedule, of which the part `strength` in (0, 1] is run; guidance_scale: at most 1
        means no guidance; scheduler, timestep_spacing: see `LatentDiffusion.scheduler`; batch_size: candidates per
        U-Net call (twice as many rows with guidance), None for all; out of memory halves it for good;
        guidance_interval in [0, 1]: the share of the executed steps, from the first, that are guided, to the nearest
        step; the others run the conditional half alone (after Kynkäänniemi et al. 2024 and Adaptive Guidance, Castillo
        et al. 2023; which steps is ours).

        A latent consistency model takes the guidance scale as a condition of its U-Net, in every step.
        `evaluations` and `guided` count the U-Net calls that a batch takes, and those of them with twice the rows.
        Raises InputError if no step would be run, or more than the scheduler has.
        """
        self.ldm, self.prompts = ldm, prompts
        self.steps, self.strength, self.guidance_scale = steps, strength, guidance_scale
        self.scheduler, self.batch_size, self.timestep_spacing = scheduler, batch_size, timestep_spacing
        self.guidance_interval = guidance_interval
        if not 0 < strength <= 1 or int(steps * strength) < 1:
            raise InputError(
                f"{steps} denoising steps at strength {strength} leave no step to run: strength must lie "
                "in (0, 1] and steps x strength must be at least 1."
            )
        self.evaluations: int = len(self._schedule()[1])
        twice = guidance_scale > 1 and not ldm.embeds_guidance
        self.guided: int = round(guidance_interval * self.evaluations) if twice else 0

    @classmethod
    def of(cls, model: PromptedModel, hparams: dict[str, Any]) -> "CandidateSampler":
        """The sampler that a run's hparams describe. Raises InputError as the constructor does."""
        return cls(
            model.ldm,
            model.prompts,
            steps=hparams["denoising_steps"],
            strength=hparams["strength"],
            guidance_scale=hparams["guidance_scale"],
            scheduler=hparams["scheduler"],
            timestep_spacing=hparams["timestep_spacing"],
            guidance_interval=hparams["guidance_interval"],
        )

    @torch.no_grad()
    def sample(self, images: Tensor, labels: Tensor, seeds: list[list[int]]) -> Candidates:
        """images (B, 3, S, S) in [-1, 1], labels (B,), seeds B lists of N -> N candidates per image.

        Raises InputError if the LDM's dtype cannot hold its own activations (a float16 overflow).
        """
        sources = torch.arange(len(images)).repeat_interleave(len(seeds[0]))
        latents = self.latents(images, labels, sources, [seed for row in seeds for seed in row])
        return self.decode(latents.unflatten(0, (len(images), len(seeds[0]))))

    @torch.no_grad()
    def latents(self, images: Tensor, labels: Tensor, sources: Tensor, seeds: list[int]) -> Tensor:
        """n candidates, not decoded: the k-th of image `sources[k]` with `seeds[k]` -> (n, C, h, w), scaled."""
        posterior = self.ldm.posterior(images)
        sources = sources.to(self.ldm.device)
        embeddings = self.prompts.matched(labels)

        def run(part: slice) -> Tensor:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            mean, std = posterior.mean[sources[part]], posterior.std[sources[part]]
            start = (mean + std * _noise(generators, mean)) * self.ldm.scaling_factor
            return self._denoise(start, embeddings[sources[part]], generators)

        parts, self.batch_size = in_micro_batches(run, len(seeds), self.batch_size)
        return torch.cat(parts)

    def decode(self, latents: Tensor) -> Candidates:
        """Latents (B, N, C, h, w) with the images they stand for. Raises InputError as `sample` does."""
        decoded = self.ldm.decode(latents.flatten(0, 1))
        if not decoded.isfinite().all():
            raise InputError(
                f"Generated images are not finite in {self.ldm.dtype}: run the LDM in bfloat16 or float32."
            )
        return Candidates(decoded.unflatten(0, latents.shape[:2]), latents)

    def _denoise(self, latents: Tensor, embeddings: Tensor, generators: list[torch.Generator]) -> Tensor:
        """From clean latents (n, C, h, w) to noised to denoised ones."""
        scheduler, timesteps = self._schedule()
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        latents = scheduler.add_noise(latents, _noise(generators, latents), timesteps[:1].repeat(len(latents)))
        both = torch.cat([self.prompts.unconditional.expand_as(embeddings), embeddings])
        for i, t in enumerate(timesteps):
            if i < self.guided:
                model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
                unconditional, conditional = self.ldm.predict_noise(model_input, t.expand(len(both)), both).chunk(2)
                noise = unconditional + self.guidance_scale * (conditional - unconditional)
            else:
                model_input = scheduler.scale_model_input(latents, t)
                noise = self.ldm.predict_noise(model_input, t.expand(len(latents)), embeddings, self.guidance_scale)
            latents = scheduler.step(noise, t, latents, **options, return_dict=False)[0]
        return latents

    def _schedule(self) -> tuple:
        """A fresh scheduler (solvers keep a history) and the timesteps that the pipeline would run."""
        scheduler = self.ldm.scheduler(self.scheduler, self.timestep_spacing)
        try:
            scheduler.set_timesteps(self.steps, device=self.ldm.device)
        except ValueError as error:
            raise InputError(
                f"The scheduler {self.scheduler} cannot run {self.steps} denoising steps ({error}): use fewer."
            ) from error
        skipped = (self.steps - min(int(self.steps * self.strength), self.steps)) * scheduler.order
        return scheduler, scheduler.timesteps[skipped:]


def _noise(generators: list[torch.Generator], like: Tensor) -> Tensor:
    """One draw from each generator, as the pipeline draws it: (n, *like.shape[1:])."""
    return torch.cat(
        [
            randn_tensor((1, *like.shape[1:]), generator=generator, device=like.device, dtype=like.dtype)
            for generator in generators
        ]
    )
