"""Identities: everything that a run's generated images or a candidate's latents depend on, as plain JSON values."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchvision.datasets import ImageFolder

from .. import __version__
from ..diffusion.source import files_used, resolve_source, resolve_tiny_half
from ..digests import files_digest
from ..hosting import context, host
from ..hosting.hparam_effects import of_a_candidate, of_a_run

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.model import LatentDiffusion

#: Arguments of the train script that are not compared: they change no generated image, and the resolved hparams have an
#: entry of their own. All other arguments change θ or the pixels.
ARGUMENTS_LEFT_OUT = ("data_dir", "output_dir", "hparams", "skip_model_save", "save_model_every_checkpoint")
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "numpy", "pillow")
LIBRARIES_OF_A_CANDIDATE = ("torch", "diffusers", "transformers")


def run_identity(hparams: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The identity of the run in this process. Reads the diffusion model's weights once, for their digest."""
    arguments = {
        name: value for name, value in vars(context.train_arguments()).items() if name not in ARGUMENTS_LEFT_OUT
    }
    identity = {
        "arguments": arguments,
        "hparams": of_a_run(hparams),
        "ldm": model_identity(hparams),
        "machine": {"device": device.type, "host": host.NAME},
        "versions": {"domainbed-domainfusion": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    return json.loads(json.dumps(identity, default=lambda value: value.item()))  # the host's draws may be numpy's


def candidate_identity(hparams: dict[str, Any], ldm: "LatentDiffusion") -> dict[str, Any]:
    """Everything except image, prompt and seed that a candidate's latents depend on."""
    return {
        "ldm": model_identity(hparams)["sha256"],
        "dtype": str(ldm.dtype),
        "device": ldm.device.type,
        **of_a_candidate(hparams),
        "versions": {name: version(name) for name in LIBRARIES_OF_A_CANDIDATE},
    }


def model_identity(hparams: dict[str, Any]) -> dict[str, str | None]:
    """The diffusion model: its name, its revision, and the SHA-256 of its files and of its tiny decoder's files."""
    path = resolve_source(hparams["ldm"], hparams["ldm_revision"])
    snapshot = path.name if path.parent.name == "snapshots" else None  # the hub's cache: snapshots/<commit>
    decoder = hparams["ldm_decoder"]
    return {
        "name": hparams["ldm"],
        "revision": snapshot or hparams["ldm_revision"],
        "sha256": _model_digest(path),
        "decoder_sha256": None if decoder is None else _model_digest(resolve_tiny_half(decoder, path, "decoder")),
    }


def sources_of(in_splits: list, keys: list, class_names: list[str], prompts: list[str]) -> dict[str, Any]:
    """The source of each image of the generate-dataset, for `generate --run`. Returns

    environments: index into the host's dataset → {name of the domain, files: index into the domain → source}. A source
    is the image file, relative to the dataset's folder. If the host reads tensors, it is "domain/index";
    classes: in label order, the names of the class folders; class_names if the host reads tensors;
    prompts: as given.
    """
    environments = {}
    for split, in_split in enumerate(in_splits):
        folder, source = isinstance(in_split.source, ImageFolder), in_split.source
        name = Path(source.root).name if folder else in_split.domain
        files = {}
        for _, index in (key for key in keys if key[0] == split):
            files[str(index)] = (
                f"{name}/{Path(source.samples[index][0]).relative_to(source.root).as_posix()}"
                if folder
                else f"{name}/{index:05d}"
            )
        environments[str(in_split.environment)] = {"name": name, "files": files}
    source = in_splits[0].source
    classes = source.classes if isinstance(source, ImageFolder) else class_names
    return {"classes": list(classes), "prompts": prompts, "environments": environments}


def _model_digest(path: Path) -> str:
    """SHA-256 of a resolved model: only of the files that are loaded, not of others in the same folder."""
    return files_digest(files_used(path), path)
