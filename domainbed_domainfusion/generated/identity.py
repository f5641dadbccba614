"""Who a run is, as far as its generated images go: everything that decides them, in plain JSON values."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder

from .. import __version__
from ..diffusion.source import resolve_decoder, resolve_source
from ..hosting import context, host

#: Arguments of train and hparams that change no image. All others do, by way of θ or of the pixels.
FREE_ARGUMENTS = ("data_dir", "output_dir", "hparams", "skip_model_save", "save_model_every_checkpoint")
FREE_HPARAMS = ("gallery", "save_generated", "candidate_cache")
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "numpy", "pillow")


def run_identity(hparams: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The identity of the run in this process. Reads the diffusion model's weights once, to tell one from another."""
    arguments = {name: value for name, value in vars(context.train_arguments()).items() if name not in FREE_ARGUMENTS}
    values = {name: value for name, value in hparams.items() if name not in FREE_HPARAMS}
    if hparams.get("candidate_cache") is not None:  # the seeds are others; where the folder lies changes nothing
        values["candidate_cache"] = True
    identity = {
        "arguments": arguments,
        "hparams": values,
        "ldm": model_identity(hparams),
        "machine": {"device": device.type, "host": host.NAME},
        "versions": {"domainbed-domainfusion": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    return json.loads(json.dumps(identity, default=lambda value: value.item()))  # the host's draws may be numpy's


def model_identity(hparams: dict[str, Any]) -> dict[str, str | None]:
    """The diffusion model: the name it goes by, the revision, and a SHA-256 of its files and of its tiny decoder's."""
    path = resolve_source(hparams["ldm"], hparams["ldm_revision"])
    snapshot = path.name if path.parent.name == "snapshots" else None  # the hub's cache: snapshots/<commit>
    decoder = hparams["ldm_decoder"]
    return {
        "name": hparams["ldm"],
        "revision": snapshot or hparams["ldm_revision"],
        "sha256": file_digest(path),
        "decoder_sha256": None if decoder is None else file_digest(resolve_decoder(decoder, path)),
    }


def sources_of(in_splits: list, keys: list, class_names: list[str], prompts: list[str]) -> dict[str, Any]:
    """What each image of the generate-dataset was made from.

    environments: by index into the host's dataset, a domain's name and, by index into it, the images' files (relative
    to the dataset's folder) or "domain/index" where the host reads tensors; classes: folder names in label order.
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


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's weights, configurations and vocabularies with their names."""
    digest = hashlib.sha256()
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*") if file.suffix in (".safetensors", ".json", ".txt"))
    )
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()
