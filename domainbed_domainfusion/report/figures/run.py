"""The source of the supplement's figures: one DomainFusion job, its followed images, and the choice among them.

Every followed image belongs to a training in-split, because images are generated from nothing else.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...errors import InputError
from ...hosting.held_out_ldm import with_ldm_of_run
from ...hosting.hparams import added_defaults
from ...hosting.ld_presets import with_ld_preset
from ..jobs import read_job

ALGORITHM = "DomainFusion"


@dataclass(frozen=True)
class Version:
    """A followed image after one round. `confidence` is p at the start of that round, None if the gallery lacks it."""

    round: int  # 0: the original
    step: int
    image: torch.Tensor  # (3, S, S) uint8
    confidence: float | None


@dataclass(frozen=True)
class FollowedImage:
    """One training image and its versions by round; round 0 is the original. `background`: its complexity."""

    key: str
    domain: str
    class_name: str
    label: int
    versions: dict[int, Version]
    background: float

    @property
    def original(self) -> Version:
        return self.versions[0]


@dataclass(frozen=True)
class FiguresRun:
    """A DomainFusion job, finished or not, with at least one followed image."""

    folder: Path
    name: str  # e.g. "DomainFusion on PACS, test_envs 0, trial 0, hparams seed 0"
    args: dict[str, Any]
    hparams: dict[str, Any]
    class_names: list[str]
    images: list[FollowedImage]


def read_run(folder: Path) -> FiguresRun:
    """Read a job folder; pictures that cannot be read are left out.

    Raises InputError (one sentence with the remedy) if the folder is not a job's, belongs to another algorithm, or has
    no result row or no gallery.
    """
    if not folder.is_dir():
        raise InputError(f"No job folder at {folder}: give --run the folder of one {ALGORITHM} run.")
    job = read_job(folder)
    if not job.args:
        raise InputError(_no_job(folder))
    if job.args["algorithm"] != ALGORITHM:
        raise InputError(
            f"{folder} is a run of {job.args['algorithm']}, which generates no images: give --run a run of {ALGORITHM}."
        )
    if not job.rows:
        raise InputError(
            f"{folder} has no result row yet, and its hparams stand there: wait for its first evaluation, "
            "or give --run another run."
        )
    hparams = with_ld_preset({**added_defaults(ALGORITHM, job.args["dataset"]), **job.rows[-1]["hparams"]})
    hparams = with_ldm_of_run(hparams, job.args["dataset"], job.args["test_envs"])
    class_names, images = _read_gallery(folder, hparams["gallery"])
    return FiguresRun(folder, job.name, job.args, hparams, class_names, images)


def _no_job(folder: Path) -> str:
    jobs = [path for path in sorted(folder.iterdir()) if (path / "generated" / "gallery.json").is_file()]
    if jobs:
        return f"{folder} holds runs and is none itself: give --run one of them, for example {jobs[0]}."
    return (
        f"{folder} is not a job folder (no whole results.jsonl, no out.txt): give --run the folder of one "
        f"{ALGORITHM} run."
    )


def _read_gallery(folder: Path, followed: int) -> tuple[list[str], list[FollowedImage]]:
    path = folder / "generated" / "gallery.json"
    if not path.is_file():
        reason = (
            "its hparam gallery is 0"
            if followed == 0
            else "it has not finished a round of generation, or its pictures were deleted"
        )
        raise InputError(
            f"{folder} has no generated/gallery.json ({reason}): run it with --hparams "
            "'{\"gallery\": 4}' and draw from its first round on."
        )
    try:
        content = json.loads(path.read_text())
        names = [str(name) for name in content["class_names"]]
        images = [image for image in (_followed(entry, names, path.parent) for entry in content["images"]) if image]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): take it from a backup, or give --run another run."
        ) from error
    if not images:
        raise InputError(
            f"No picture that {path} names can be read: copy the whole folder {path.parent}, or give --run another run."
        )
    return names, images


def _followed(entry: dict[str, Any], class_names: list[str], folder: Path) -> FollowedImage | None:
    versions = {}
    for version in entry["versions"]:
        image = _pixels(folder / version["file"])
        if image is not None:
            versions[version["round"]] = Version(version["round"], version["step"], image, version.get("confidence"))
    if 0 not in versions:
        return None
    label = entry["label"] if "label" in entry else class_names.index(entry["class_name"])  # older galleries lack it
    return FollowedImage(
        entry["key"],
        str(entry["domain"]),
        entry["class_name"],
        label,
        dict(sorted(versions.items())),
        background_complexity(versions[0].image),
    )


def _pixels(path: Path) -> torch.Tensor | None:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, UnidentifiedImageError):
        return None


def background_complexity(image: torch.Tensor) -> float:
    """The lower quartile of the colour gradient outside the central half of an image (3, S, S) uint8.

    Per pixel, the gradient is the norm over the three channels, each in [0, 1], and both directions. The measure is
    ours. The frame around the middle is mostly background, and an object that reaches into it does not fill it. The
    measure is 0 if a quarter of the frame is flat.
    """
    rows, columns = np.gradient(image.numpy() / 255, axis=(1, 2))
    gradient = np.sqrt((rows**2 + columns**2).sum(0))
    middle = tuple(slice(side // 4, side - side // 4) for side in gradient.shape)
    frame = np.ones_like(gradient, dtype=bool)
    frame[middle] = False
    return float(np.quantile(gradient[frame], 0.25))


def plainest_by_domain(images: list[FollowedImage], count: int) -> list[FollowedImage]:
    """For each of up to `count` domains, in their order, the image with the least complex background."""
    domains = list(dict.fromkeys(image.domain for image in images))[:count]
    return [
        min((image for image in images if image.domain == domain), key=lambda image: image.background)
        for domain in domains
    ]


def most_complex(images: list[FollowedImage], count: int) -> list[FollowedImage]:
    """The third of the images with the most complex backgrounds, most complex first: at least one, at most `count`."""
    ranked = sorted(images, key=lambda image: -image.background)
    return ranked[: max(1, min(count, len(images) // 3))]
