"""Diffusion models that learn from the in-splits: a copy of φ for each training domain, and InvDiff's guidance."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from ..hosting import context
from ..pixels import from_store, stored_version, without_transform

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.fine_tuning import Pictures
    from ..diffusion.model import LatentDiffusion
    from ..diffusion.prompted import PromptedModel


def fine_tuned_models(model: "PromptedModel", hparams: dict[str, Any]) -> list["LatentDiffusion"]:
    """DSI's: one for each training domain, in the order of the minibatches, trained without a prompt.

    All draws are seeded by the run and the domain.
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
            [pictures_of(split, hparams["image_size"], with_labels=False)],
            steps=hparams["dsi_finetune_steps"],
            rate=hparams["dsi_finetune_lr"],
            batch=hparams["dsi_finetune_batch"],
            identity=(run.seed, "DSI fine-tuning", split.environment),
            name=f"on domain {split.domain}",
        )
        for split in run.in_splits
    ]


def guided_model(model: "PromptedModel", hparams: dict[str, Any]) -> "PromptedModel":
    """With the invariant guidance that the hparams describe; the model itself without, and outside a training run.

    All draws are seeded by the run.
    """
    run = context.current()
    if not hparams["invariant_steps"] or not run.in_splits:
        return model
    from ..diffusion.invariant_guidance import invariantly_guided

    domains = [pictures_of(split, hparams["image_size"], with_labels=True) for split in run.in_splits]
    return invariantly_guided(model, domains, hparams, (run.seed, "invariant guidance"))


def pictures_of(split: context.InSplit, size: int, with_labels: bool) -> "Pictures":
    """The in-split's raw images (3, size, size) in [-1, 1], without the host's augmentation.

    Their prompts are numbered by their labels; without `with_labels` all have the number 0.
    """
    from ..diffusion.fine_tuning import Pictures

    source: Any = without_transform(split.source)

    def item(i: int) -> tuple[torch.Tensor, int]:
        image, label = source[split.keys[i]]
        return from_store(stored_version(image, size)), int(label) if with_labels else 0

    return Pictures(len(split.keys), item)


def check_fine_tuning(ldm: Path | str, hparams: dict[str, Any], copies: int, switch: str) -> None:
    """Raise InputError if so many copies of this model cannot be fine-tuned, or not in the memory at hand.

    ldm: a resolved path. switch: the hparam whose value 0 means none.
    """
    from ..diffusion import fine_tuning

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as in the host's train script
    float32 = hparams["ldm_dtype"] == "float32" or (hparams["ldm_dtype"] == "auto" and device.type == "cpu")
    remedy = f"set {switch} to 0, or take a machine with more memory"
    fine_tuning.check(Path(ldm), copies, 4 if float32 else 2, device, remedy)


def check_invariant_guidance(ldm: Path | str, hparams: dict[str, Any]) -> None:
    """Raise InputError if the guidance cannot be learned, or beside what cannot use it. ldm: a resolved path."""
    for name, off in (("candidate_cache", None), ("generation_devices", None), ("ldm_compile", False)):
        if hparams[name] != off:
            raise InputError(
                f"invariant_steps makes a diffusion model of this run alone, which {name} cannot use: turn one of them "
                "off."
            )
    if hparams["reuse_interval"] > 1:
        raise InputError("reuse_interval runs parts of one U-Net, and invariant_steps adds another: set it to 1.")
    check_fine_tuning(ldm, hparams, 1, "invariant_steps")
