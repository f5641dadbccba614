"""How near the candidates of few denoising steps come to those of many: a score of timesteps without FID. Ours."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..pixels import psnr
from .candidates import CandidateSampler
from .prompted import PromptedModel


class ReferenceDistance:
    """One candidate of each image, by a few steps and by many, from the same noise under the same hparams.

    AutoDiffusion (Li et al. 2023) scores a list of timesteps by FID. A solver such as DPM-Solver++ follows one curve
    from the noise to the image, the better the more steps it takes. So the distance to a solution of many steps is the
    error of the few, image by image, and a handful of images suffices to see it.
    """

    def __init__(
        self,
        model: PromptedModel,
        hparams: dict[str, Any],
        images: Tensor,
        labels: Tensor,
        seeds: list[int],
        reference_steps: int,
    ) -> None:
        """Run the reference: `reference_steps` steps of the whole schedule, of which strength runs its share.

        hparams: of a run; the scheduler draws no noise in its steps, and `denoising_steps` is the length of the lists.
        images: (B, 3, S, S) in [-1, 1]. labels: (B,). seeds: B.
        Raises InputError for a sampler that cannot be run, and for a reference that is not finite.
        """
        self.model, self.images, self.labels, self.seeds = model, images, labels, seeds
        self.hparams = {**hparams, "denoising_timesteps": None}
        self._batch_size: int | None = hparams["generation_batch"]
        reference = CandidateSampler.of(model, {**self.hparams, "denoising_steps": reference_steps})
        self.reference_timesteps: tuple[int, ...] = reference.executed
        self._reference = self._latents(reference)
        self._decoded: Tensor | None = None
        if not self._reference.isfinite().all():
            raise InputError(
                f"Candidates of {reference_steps} steps are not finite in {model.ldm.dtype}: run the LDM in bfloat16 "
                "or float32."
            )

    def distances(self, timesteps: Sequence[int]) -> Tensor:
        """Mean squared error of each candidate's scaled latents: (B,) float64; infinite where latents are not finite.

        timesteps: those that are run, falling.
        """
        difference = self._latents(self._sampler(timesteps)).double() - self._reference.double()
        return difference.square().flatten(1).mean(1).nan_to_num(nan=math.inf, posinf=math.inf).cpu()

    def psnr(self, timesteps: Sequence[int]) -> Tensor:
        """Peak signal-to-noise ratio of each candidate's image to the reference's, in dB: (B,) float64."""
        sampler = self._sampler(timesteps)
        if self._decoded is None:
            self._decoded = sampler.decode(self._reference[:, None]).images.double()
        images = sampler.decode(self._latents(sampler)[:, None]).images.double()
        return psnr(images, self._decoded)[:, 0].cpu()

    def with_skipped(self, timesteps: Sequence[int]) -> list[int]:
        """The hparam `denoising_timesteps` of which strength leaves `timesteps` to run.

        The entries before them are never run. They are the model's highest timesteps.
        """
        skipped = self.hparams["denoising_steps"] - len(timesteps)
        highest = self.model.ldm.num_train_timesteps - 1
        return [*range(highest, highest - skipped, -1), *timesteps]

    def _sampler(self, timesteps: Sequence[int]) -> CandidateSampler:
        return CandidateSampler.of(self.model, {**self.hparams, "denoising_timesteps": self.with_skipped(timesteps)})

    def _latents(self, sampler: CandidateSampler) -> Tensor:
        """(B, C, h, w). A batch size that did not fit into memory is not tried again."""
        sampler.batch_size = self._batch_size
        latents = sampler.latents(self.images, self.labels, torch.arange(len(self.images)), self.seeds)
        self._batch_size = sampler.batch_size
        return latents
