"""N_c candidates for a batch of images by image-to-image diffusion: Algorithm 1, line 7.

For a control they can also be made from the prompt alone (`source="prompt"`).
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..errors import InputError
from .feature_reuse import FeatureReuse
from .invariant_guidance import InvariantGuidance
from .micro_batches import in_micro_batches
from .model import LatentDiffusion
from .prompted import PromptedModel
from .prompts import Prompts


@dataclass
class Candidates:
    """N candidates for each of B images."""

    images: Tensor  # (B, N, 3, S, S) float32 in [-1, 1]
    latents: Tensor  # (B, N, C, h, w), scaled, in the LDM's dtype


@dataclass
class Begun:
    """n candidates after their first steps."""

    steps: int  # that have been run
    latents: Tensor  # (n, C, h, w), scaled, where the next step goes on
    previews: Tensor  # (n, C, h, w), scaled: the clean latents that the last step has predicted, x̂0
    embeddings: Tensor  # (n, L, D), of each candidate's prompt


SOURCES = ("image", "prompt")


class CandidateSampler:
    """Image-to-image diffusion as diffusers' StableDiffusionImg2ImgPipeline does it, for many images at once.

    With the source "prompt" it is text-to-image diffusion, as diffusers' StableDiffusionPipeline does it.

    Each candidate draws from its own `torch.Generator` on the CPU. Up to rounding, it is what the pipeline makes of the
    same image, prompt and generator. The rest of the batch does not matter.
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
        guidance_agreement: float | None = None,
        timesteps: list[int] | None = None,
        source: str = "image",
        reuse_interval: int = 1,
    ) -> None:
        """Raises InputError if no step would be run, or more steps than the scheduler has, or `timesteps` that it
        cannot run, or if features are reused by a compiled model.

        steps: of the whole schedule. strength: in (0, 1], the share of these steps that is run.
        guidance_scale: 1 or less means no guidance. A latent consistency model takes the scale as a condition of its
        U-Net in every step.
        scheduler, timestep_spacing: see `LatentDiffusion.scheduler`.
        batch_size: candidates per U-Net call (twice as many rows with guidance), None for all. If the memory does not
        suffice it is halved for good.
        guidance_interval: in [0, 1], the share of the executed steps that are guided, rounded to whole steps and
        counted from the first. The other steps run the conditional half alone. After Kynkäänniemi et al. 2024 and
        Adaptive Guidance (Castillo et al. 2023); that the first steps are the guided ones is ours.
        guidance_agreement: in [-1, 1], Adaptive Guidance. A candidate whose conditional and unconditional noise have
        a cosine above it is not guided in the steps that follow. None: the interval alone decides.
        timesteps: falling, of the model's training schedule; they are run in place of `steps` and `timestep_spacing`.
        source: "image" begins at the noised image. "prompt" begins at pure noise: the whole schedule runs, and the
        images give only their labels and their size.
        Raises ValueError for another source.
        reuse_interval: k; every k-th step is a whole pass of the U-Net, see `FeatureReuse`.
        """
        if source not in SOURCES:
            raise ValueError(f"source {source!r} is not one of {', '.join(SOURCES)}")
        if reuse_interval > 1 and ldm.is_compiled:
            raise InputError("reuse_interval runs parts of the U-Net, which ldm_compile cannot: turn one of them off.")
        strength = strength if source == "image" else 1.0
        self.ldm, self.prompts = ldm, prompts
        self.steps, self.strength, self.guidance_scale = steps, strength, guidance_scale
        self.scheduler, self.batch_size, self.timestep_spacing = scheduler, batch_size, timestep_spacing
        self.guidance_interval, self.guidance_agreement = guidance_interval, guidance_agreement
        self.timesteps, self.source, self.reuse_interval = timesteps, source, reuse_interval
        if timesteps is not None:
            self.steps = steps = len(timesteps)
        if not 0 < strength <= 1 or int(steps * strength) < 1:
            raise InputError(
                f"{steps} denoising steps at strength {strength} leave no step to run: strength must lie "
                "in (0, 1] and steps x strength must be at least 1."
            )
        #: U-Net calls for one batch, and how many of these calls have twice the rows (with an agreement: at most).
        self.evaluations: int = len(self._schedule()[1])
        twice = guidance_scale > 1 and not ldm.embeds_guidance
        self.guided: int = round(guidance_interval * self.evaluations) if twice else 0

    @classmethod
    def of(cls, model: PromptedModel, hparams: dict[str, Any]) -> "CandidateSampler":
        """The sampler that a run's hparams describe.

        Raises InputError as the constructor does, and if the guidance of `invariant_steps` has not been learned.
        """
        if hparams.get("invariant_steps") and not isinstance(model.ldm._unet, InvariantGuidance):
            raise InputError(
                "invariant_steps learns on the training domains of a training run, and here there is none: set it to 0."
            )
        return cls(
            model.ldm,
            model.prompts,
            steps=hparams["denoising_steps"],
            strength=hparams["strength"],
            guidance_scale=hparams["guidance_scale"],
            scheduler=hparams["scheduler"],
            timestep_spacing=hparams["timestep_spacing"],
            guidance_interval=hparams["guidance_interval"],
            guidance_agreement=hparams["guidance_agreement"],
            timesteps=hparams["denoising_timesteps"],
            source=hparams["candidate_source"],
            reuse_interval=hparams["reuse_interval"],
        )

    @property
    def executed(self) -> tuple[int, ...]:
        """The timesteps that are run, in this order."""
        return tuple(self._schedule()[1].tolist())

    @torch.no_grad()
    def sample(self, images: Tensor, labels: Tensor, seeds: list[list[int]]) -> Candidates:
        """images (B, 3, S, S) in [-1, 1], labels (B,), seeds: B lists of N -> N candidates per image.

        Raises InputError if activations overflow in the LDM's dtype (float16).
        """
        sources = torch.arange(len(images)).repeat_interleave(len(seeds[0]))
        latents = self.latents(images, labels, sources, [seed for row in seeds for seed in row])
        return self.decode(latents.unflatten(0, (len(images), len(seeds[0]))))

    def check_early(self, steps: int) -> None:
        """Raise InputError unless `begin` can stop after so many steps and `finish` can go on as if it had not.

        That takes a scheduler without a memory of earlier steps, and guidance that does not depend on them.
        """
        if self.scheduler != "ddim" or self.guidance_agreement is not None:
            other = f"scheduler {self.scheduler}" if self.scheduler != "ddim" else "guidance_agreement"
            raise InputError(
                f"early_choice stops between two steps, which {other} cannot: use the scheduler ddim without "
                "guidance_agreement, or set early_choice to null."
            )
        if not 0 < steps < self.evaluations:
            raise InputError(
                f"early_choice is {steps}, but strength runs {self.evaluations} of the denoising_steps: give a number "
                f"from 1 to {self.evaluations - 1}, or null."
            )
        begins = self.guided if self.guided <= steps else 0  # the end of guidance begins a new group of steps
        if (steps - begins) % self.reuse_interval:
            raise InputError(
                f"early_choice is {steps}, in the middle of the {self.reuse_interval} steps that share features: "
                "choose another step, or set it to null."
            )

    @torch.no_grad()
    def begin(self, images: Tensor, labels: Tensor, seeds: list[list[int]], steps: int) -> Begun:
        """The first steps of the candidates that `sample` would make, B × N of them, those of an image together."""
        sources = torch.arange(len(images)).repeat_interleave(len(seeds[0]))
        embeddings = self.prompts.matched(labels)[sources.to(self.ldm.device)]
        begun = self._begun(images, labels, sources, [seed for row in seeds for seed in row], steps)
        return Begun(steps, *begun, embeddings)

    @torch.no_grad()
    def finish(self, begun: Begun, rows: Tensor) -> Tensor:
        """The latents (m, C, h, w) that `sample` would give to these m candidates. rows: their places in `begun`."""
        scheduler, timesteps = self._schedule()

        def run(part: slice) -> Tensor:
            chosen = rows[part].to(begun.latents.device)
            remaining = range(begun.steps, len(timesteps))
            return self._run(scheduler, timesteps, remaining, begun.latents[chosen], begun.embeddings[chosen], {})[0]

        parts, self.batch_size = in_micro_batches(run, len(rows), self.batch_size)
        return torch.cat(parts)

    @torch.no_grad()
    def latents(self, images: Tensor, labels: Tensor, sources: Tensor, seeds: list[int]) -> Tensor:
        """Scaled latents (n, C, h, w) of n candidates; the k-th is made from image `sources[k]` with `seeds[k]`."""
        return self._begun(images, labels, sources, seeds, self.evaluations)[0]

    def _begun(
        self, images: Tensor, labels: Tensor, sources: Tensor, seeds: list[int], steps: int
    ) -> tuple[Tensor, Tensor]:
        """Latents and x̂0 of the candidates of `latents` after some of their steps."""
        posterior = self.ldm.posterior(images) if self.source == "image" else None
        sources = sources.to(self.ldm.device)
        embeddings = self.prompts.matched(labels)
        shape = (self.ldm.latent_channels, *(side // self.ldm.scale_factor for side in images.shape[-2:]))

        def run(part: slice) -> tuple[Tensor, Tensor]:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            start = None
            if posterior is not None:
                mean, std = posterior.mean[sources[part]], posterior.std[sources[part]]
                start = (mean + std * self._noise(generators, shape)) * self.ldm.scaling_factor
            return self._denoise(start, shape, embeddings[sources[part]], generators, steps)

        parts, self.batch_size = in_micro_batches(run, len(seeds), self.batch_size)
        latents, previews = zip(*parts)
        return torch.cat(latents), torch.cat(previews)

    def decode(self, latents: Tensor) -> Candidates:
        """Scaled latents (B, N, C, h, w) and their images. Raises InputError as `sample` does."""
        decoded = self.ldm.decode(latents.flatten(0, 1))
        if not decoded.isfinite().all():
            raise InputError(
                f"Generated images are not finite in {self.ldm.dtype}: run the LDM in bfloat16 or float32."
            )
        return Candidates(decoded.unflatten(0, latents.shape[:2]), latents)

    def _denoise(
        self,
        start: Tensor | None,
        shape: tuple[int, ...],
        embeddings: Tensor,
        generators: list[torch.Generator],
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        """Noise clean latents (n, C, h, w) to the first timestep, then run so many steps. Without a start: pure noise.

        Returns the latents and x̂0.
        """
        scheduler, timesteps = self._schedule()
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        noise = self._noise(generators, shape)
        if start is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(start, noise, timesteps[:1].repeat(len(start)))
        return self._run(scheduler, timesteps, range(steps), latents, embeddings, options)

    def _run(
        self, scheduler: Any, timesteps: Tensor, steps: range, latents: Tensor, embeddings: Tensor, options: dict
    ) -> tuple[Tensor, Tensor]:
        """The latents after these of the steps, and the last one's x̂0; the latents again if the scheduler has none.

        options: of the scheduler's steps.
        """
        unconditional = self.prompts.unconditional.expand_as(embeddings)
        guided = torch.arange(len(latents), device=latents.device)  # the candidates that are guided in the next step
        conditions = torch.cat([unconditional, embeddings])
        clean, unet = latents, FeatureReuse(self.ldm, self.reuse_interval)
        for i in steps:
            t = timesteps[i]
            if i >= self.guided:
                guided, conditions = guided[:0], embeddings
            model_input = scheduler.scale_model_input(latents, t)
            model_input = torch.cat([model_input[guided], model_input])
            predicted = unet.predict(model_input, t.expand(len(model_input)), conditions, self.guidance_scale)
            without, output = predicted.split([len(guided), len(latents)])
            if len(guided):
                conditional = output[guided]
                output = output.index_copy(0, guided, without + self.guidance_scale * (conditional - without))
                if self.guidance_agreement is not None:
                    z_t = model_input[: len(guided)]
                    both = (self.ldm.as_noise(each, z_t, t.expand(len(z_t))) for each in (without, conditional))
                    guided = guided[_cosine(*both) <= self.guidance_agreement]
                    conditions = torch.cat([unconditional[guided], embeddings])
            after = scheduler.step(output, t, latents, **options)
            latents, clean = after.prev_sample, getattr(after, "pred_original_sample", after.prev_sample)
        return latents, clean

    def _noise(self, generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
        """One draw from each generator, as the pipeline draws it: (n, *shape)."""
        like = {"device": self.ldm.device, "dtype": self.ldm.dtype}
        return torch.cat([randn_tensor((1, *shape), generator=generator, **like) for generator in generators])

    def _schedule(self) -> tuple:
        """A fresh scheduler, because solvers keep a history, and the timesteps that the pipeline would run."""
        scheduler = self.ldm.scheduler(self.scheduler, self.timestep_spacing)
        try:
            if self.timesteps is None:
                scheduler.set_timesteps(self.steps, device=self.ldm.device)
            else:
                self._check_timesteps(scheduler, self.timesteps)
                scheduler.set_timesteps(timesteps=self.timesteps, device=self.ldm.device)
        except ValueError as error:
            what, remedy = f"{self.steps} denoising steps", "use fewer"
            if self.timesteps is not None:
                what, remedy = f"the denoising_timesteps {self.timesteps}", "set them to null, or use dpmsolver++"
            raise InputError(f"The scheduler {self.scheduler} cannot run {what} ({error}): {remedy}.") from error
        skipped = (self.steps - min(int(self.steps * self.strength), self.steps)) * scheduler.order
        return scheduler, scheduler.timesteps[skipped:]

    def _check_timesteps(self, scheduler: Any, timesteps: list[int]) -> None:
        """Raise InputError for timesteps that the scheduler or the model does not have."""
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise InputError(
                f"The scheduler {self.scheduler} takes steps of one size: for denoising_timesteps use dpmsolver++."
            )
        if timesteps[0] >= self.ldm.num_train_timesteps:
            raise InputError(
                f"denoising_timesteps begins at {timesteps[0]}, but the model's timesteps are 0 to "
                f"{self.ldm.num_train_timesteps - 1}."
            )


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of the angle between two predictions of each candidate: (n, C, h, w) twice → (n,)."""
    precision = torch.promote_types(one.dtype, torch.float32)
    return torch.cosine_similarity(one.flatten(1).to(precision), other.flatten(1).to(precision))
