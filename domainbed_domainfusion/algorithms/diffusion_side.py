"""The frozen diffusion model as one run uses it: prompts, candidate sampler and Latent Distillation, from hparams."""

from dataclasses import dataclass
from typing import Any

import torch

from ..diffusion.candidates import CandidateSampler
from ..diffusion.distillation import LatentDistillation
from ..diffusion.model import LatentDiffusion
from ..diffusion.prompts import Prompts
from ..generated.candidate_cache import CandidateCache


def load_prompted(
    hparams: dict[str, Any], class_names: list[str], device: torch.device
) -> tuple[LatentDiffusion, Prompts]:
    """φ (one load per process) on the classifier's device and one prompt per class; InputError if it cannot be used."""
    dtype = hparams["ldm_dtype"]
    if dtype == "auto":
        dtype = "float16" if device.type == "cuda" else "float32"
    ldm = LatentDiffusion.load(
        hparams["ldm"], device=device, dtype=dtype, revision=hparams["ldm_revision"], decoder=hparams.get("ldm_decoder")
    )  # zero-shot classifiers decode nothing
    ldm.check_image_size(hparams["image_size"])
    prompts = Prompts(ldm, class_names, hparams["prompt_template"])
    ldm.drop_text_encoder()
    return ldm, prompts


@dataclass
class DiffusionSide:
    """φ and what is asked of it. Not a module: a classifier that holds it does not save, count or move it."""

    ldm: LatentDiffusion
    candidates: CandidateSampler
    distillation: LatentDistillation
    cache: CandidateCache | None = None  # of first-round candidates, in a run with the hparam candidate_cache

    @classmethod
    def load(cls, hparams: dict[str, Any], class_names: list[str], device: torch.device) -> "DiffusionSide":
        """Load φ (once per process) on the classifier's device; raises InputError if it cannot be used."""
        ldm, prompts = load_prompted(hparams, class_names, device)
        if hparams["ldm_compile"]:
            ldm.compile(cuda_graphs=hparams["ldm_compile"] == "cuda_graphs")
        candidates = CandidateSampler(
            ldm,
            prompts,
            steps=hparams["denoising_steps"],
            strength=hparams["strength"],
            guidance_scale=hparams["guidance_scale"],
            scheduler=hparams["scheduler"],
            timestep_spacing=hparams["timestep_spacing"],
            guidance_interval=hparams["guidance_interval"],
        )
        distillation = LatentDistillation(
            ldm,
            prompts,
            draws=hparams["ld_draws"],
            weighting=hparams["ld_weighting"],
            gradient=hparams["ld_gradient"],
            corruption=hparams["ld_corruption"],
            micro_batch=hparams["ld_batch"] or None,
            gradient_mode=hparams["ld_gradient_mode"],
        )
        return cls(ldm, candidates, distillation)

    def share_candidates(self, folder: str, ldm_sha256: str) -> None:
        """Take the first round's candidates from `folder` where they are there. Raises InputError for a bad folder."""
        self.cache = CandidateCache(folder, self.candidates, ldm_sha256)
