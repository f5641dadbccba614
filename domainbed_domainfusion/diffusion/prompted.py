"""The frozen LDM φ and the prompts of a run's classes, both loaded from the run's hparams."""

from dataclasses import dataclass
from typing import Any

import torch

from .model import LatentDiffusion
from .prompts import Prompts


@dataclass(frozen=True)
class PromptedModel:
    """φ and one prompt per class. Not an `nn.Module`: a classifier that holds it neither saves, counts nor moves it."""

    ldm: LatentDiffusion
    prompts: Prompts

    @classmethod
    def load(cls, hparams: dict[str, Any], class_names: list[str], device: torch.device) -> "PromptedModel":
        """φ on the classifier's device, loaded once per process, compiled where the hparam `ldm_compile` says so.

        The dtype "auto" is float16 on a GPU and float32 elsewhere. The text encoder's memory is freed.
        `ldm_decoder` and `ldm_compile` may be missing: zero-shot classifiers decode nothing.
        Raises InputError if the model, the image size or the prompts cannot be used.
        """
        dtype = hparams["ldm_dtype"]
        if dtype == "auto":
            dtype = "float16" if device.type == "cuda" else "float32"
        ldm = LatentDiffusion.load(
            hparams["ldm"],
            device=device,
            dtype=dtype,
            revision=hparams["ldm_revision"],
            decoder=hparams.get("ldm_decoder"),
        )
        ldm.check_image_size(hparams["image_size"])
        prompts = Prompts(ldm, class_names, hparams["prompt_template"])
        ldm.drop_text_encoder()
        if hparams.get("ldm_compile"):
            ldm.compile(cuda_graphs=hparams["ldm_compile"] == "cuda_graphs")
        return cls(ldm, prompts)
