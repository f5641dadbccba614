"""Some images of a folder environment/class/image, spread over its environments and classes."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torchvision import datasets

from .. import pixels
from ..hosting import checks


def open_folders(data: Path, kind: str = "environment") -> dict[str, datasets.ImageFolder]:
    """Name → images of each folder data/environment. kind: what such a folder is called where there is none.

    Raises InputError unless all have the same classes, each with images.
    """
    names = sorted(entry.name for entry in data.iterdir() if entry.is_dir()) if data.is_dir() else []
    checks.check_image_folder(str(data), names or [kind])
    return {name: datasets.ImageFolder(str(data / name)) for name in names}


def turns(groups: Iterable[Hashable]) -> Iterator[int]:
    """Of each item: it is the first, the second, … of its group."""
    taken: Counter = Counter()
    for group in groups:
        taken[group] += 1
        yield taken[group]


def choose(
    data: Path, folders: Iterable[datasets.ImageFolder], images: int, generator: torch.Generator
) -> list[tuple[str, int]]:
    """At most so many images as (path in `data`, label): from each class of each environment in turn."""
    samples = [(Path(path).relative_to(data), label) for folder in folders for path, label in folder.samples]
    order = [samples[index] for index in torch.randperm(len(samples), generator=generator).tolist()]
    of_group = turns(path.parts[:2] for path, _ in order)  # environment and class
    ranked = sorted(zip(of_group, order), key=lambda each: each[0])  # stable: groups stay in their seeded order
    return [(path.as_posix(), label) for _, (path, label) in ranked[:images]]


def read(files: Sequence[str | Path], size: int) -> torch.Tensor:
    """(files, 3, size, size) in [-1, 1]."""
    return pixels.from_store(read_stored(files, size))


def read_stored(files: Sequence[str | Path], size: int) -> torch.Tensor:
    """(files, 3, size, size) uint8, as they are stored."""
    return torch.stack([pixels.stored_version(datasets.folder.pil_loader(str(file)), size) for file in files])
