"""Some images of a folder environment/class/image, spread over its environments and classes."""

from collections import Counter
from pathlib import Path

import torch
from torchvision import datasets

from .. import pixels


def choose(
    data: Path, folders: list[datasets.ImageFolder], images: int, generator: torch.Generator
) -> list[tuple[str, int]]:
    """At most so many images as (path in `data`, label): from each class of each environment in turn."""
    samples = [(Path(path).relative_to(data), label) for folder in folders for path, label in folder.samples]
    order = torch.randperm(len(samples), generator=generator).tolist()
    taken: Counter = Counter()
    ranked = []
    for path, label in (samples[index] for index in order):
        group = path.parts[:2]  # environment and class
        ranked.append((taken[group], (path.as_posix(), label)))
        taken[group] += 1
    ranked.sort(key=lambda each: each[0])  # stable: the groups of one turn stay in their seeded order
    return [sample for _, sample in ranked[:images]]


def read(files: list[Path], size: int) -> torch.Tensor:
    """(files, 3, size, size) in [-1, 1]."""
    stored = [pixels.stored_version(datasets.folder.pil_loader(str(file)), size) for file in files]
    return pixels.from_store(torch.stack(stored))
