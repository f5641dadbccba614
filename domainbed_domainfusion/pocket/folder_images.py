"""A training set for a model of the pocket LDM's format: an image folder without its future test domain."""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from ..errors import InputError
from . import glyphs

TEMPLATES = ("a photo of a {}", "{}", "the {}", "a picture of a {}", "an image of a {}")


def read_folder(folder: Path, left_out: str) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    """Images (n, 3, SIZE, SIZE) uint8 with labels (n,) int64, and class names, of folder/<environment>/<class>/<image>.

    left_out: the environment that is not read. Raises InputError if there is none of that name, if no other is left, or
    if the environments differ in their classes.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if left_out not in found or len(found) < 2:
        raise InputError(
            f"{folder} has the environments {', '.join(found) or '(none)'}: name in --leave_out the one of them that "
            "will be the test domain."
        )
    environments = [ImageFolder(str(folder / name)) for name in found if name != left_out]
    classes = environments[0].classes
    if any(environment.classes != classes for environment in environments):
        raise InputError(f"The environments in {folder} differ in their classes: give all of them the same folders.")
    samples = [sample for environment in environments for sample in environment.samples]
    images = np.stack([_small(path) for path, _ in tqdm(samples, desc="read", unit="image", disable=None)])
    return (images, np.array([label for _, label in samples])), [name.replace("_", " ") for name in classes]


def _small(path: str) -> np.ndarray:
    """(3, SIZE, SIZE) uint8."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((glyphs.SIZE, glyphs.SIZE), Image.Resampling.LANCZOS)
    return np.moveaxis(np.asarray(small), -1, 0)
