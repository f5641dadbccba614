"""A diffusion model for each training domain: copies of φ, fine-tuned on the domains' in-splits without a prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..hosting import context
from ..pixels import from_store, stored_version, without_transform

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.model import LatentDiffusion
    from ..diffusion.prompted import PromptedModel


def fine_tuned_models(model: "PromptedModel", hparams: dict[str, Any]) -> list["LatentDiffusion"]:
    """One for each training domain, in the order of the minibatches. All draws are seeded by the run and the domain.

    Raises InputError outside the training run, where there are no images to fine-tune on.
    """
    from ..diffusion.fine_tuning import fine_tuned

    run = context.current()
    if not run.in_splits:
        raise InputError(
            "DSI's fine-tuned diffusion models exist only in the training run, and are not saved: read its accuracies "
            'there, or train with "dsi_finetune_steps": 0.'
        )
    return [
        fine_tuned(
            model.ldm,
            model.prompts.unconditional,
            pictures_of(split, hparams["image_size"]),
            len(split.keys),
            steps=hparams["dsi_finetune_steps"],
            rate=hparams["dsi_finetune_lr"],
            batch=hparams["dsi_finetune_batch"],
            identity=(run.seed, "DSI fine-tuning", split.environment),
            name=f"on domain {split.domain}",
        )
        for split in run.in_splits
    ]


def pictures_of(split: context.InSplit, size: int) -> Callable[[int], Tensor]:
    """Index in the in-split → the raw image (3, size, size) in [-1, 1], without the host's augmentation."""
    source: Any = without_transform(split.source)
    return lambda i: from_store(stored_version(source[split.keys[i]][0], size))


def check_fine_tuning(ldm: str, hparams: dict[str, Any]) -> None:
    """Raise InputError if the training domains' models cannot be made of this one, or not in the memory at hand.

    ldm: a resolved path.
    """
    from ..diffusion import fine_tuning

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as in the host's train script
    float32 = hparams["ldm_dtype"] == "float32" or (hparams["ldm_dtype"] == "auto" and device.type == "cpu")
    domains = len(context.current().in_splits)
    remedy = "set dsi_finetune_steps to 0, or take a machine with more memory"
    fine_tuning.check(Path(ldm), domains, 4 if float32 else 2, device, remedy)
