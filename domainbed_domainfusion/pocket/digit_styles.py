"""DigitStyles, the embedded benchmark: ten digits in four environments, 1,500 images of 32x32 RGB in each.

    H  handwritten: scikit-learn's digits, real scans, white on black
    P  print: black on white
    O  outline: a black line on white
    A  art: a gradient-filled glyph on coloured noise of several grains

Image `index` of environment `name` shows digit index % 10 and is a function of ("DigitStyles", name, index) alone.
`python -m domainbed_domainfusion.pocket.digit_styles --sheet out.png` draws a sheet of it to look at.
"""

import argparse
import hashlib
import inspect
import os
import sys
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from ..errors import InputError, exit_status
from ..files import write_atomically
from ..seeding import preserved_rng, seed_of
from . import CLASS_NAMES, glyphs, paints
from .contact_sheet import write_sheet

NAMESPACE = "DigitStyles"
ENVIRONMENTS = ["H", "P", "O", "A"]
PER_CLASS = 150
FOLDER, FILE = "DigitStyles", "images.npz"


def rng_of(environment: str, index: int) -> np.random.Generator:
    """The generator of image `index` of that environment."""
    return np.random.Generator(np.random.PCG64(seed_of(NAMESPACE, environment, index)))


def _print(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - np.repeat(glyphs.fill(shape)[:, :, None], 3, 2)


def _outline(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - np.repeat(glyphs.outline(shape, 1.1, grow=1.0)[:, :, None], 3, 2)


def _art(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Redrawn until the glyph's mean colour stands out from the ground's."""
    coverage = glyphs.fill(shape, 0.5)
    weight = coverage[:, :, None] / coverage.sum()
    while True:
        grains = [int(grain) for grain in rng.choice([2, 4, 8, 16], size=rng.integers(1, 4), replace=False)]
        ground = np.clip(paints.colour(rng) + rng.uniform(0.12, 0.25) * paints.noise(rng, grains), 0, 1)
        ink = paints.gradient(rng, paints.colour(rng), paints.colour(rng))
        if np.linalg.norm((ink * weight).sum((0, 1)) - ground.mean((0, 1))) > 0.6:
            return glyphs.compose(coverage, ink, ground)


LOOKS = {"P": _print, "O": _outline, "A": _art}


def render(environment: str, index: int) -> np.ndarray:
    """Image (3, 32, 32) uint8 number `index` of P, O or A; it shows digit index % 10."""
    rng = rng_of(environment, index)
    shape = glyphs.font_shape(int(rng.integers(len(glyphs.FONTS))), index % 10)
    shape = glyphs.warp(shape, rng, degrees=12, shear=0.2, scale=(0.85, 1.2), shift=4)
    return glyphs.finish(LOOKS[environment](shape, rng))


def handwritten() -> np.ndarray:
    """The first PER_CLASS scans of every digit, (10 * PER_CLASS, 3, 32, 32) uint8, digits in turn: 0, 1, ... 9, 0."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = np.stack([np.flatnonzero(scans.target == digit)[:PER_CLASS] for digit in range(10)], axis=1).ravel()
    # 16 grey levels to 255 in 8 bits, so that the bicubic resize is the same on every machine.
    small = (scans.images[order] * (255 / 16)).round().astype(np.uint8)
    large = [Image.fromarray(scan).resize((glyphs.SIZE, glyphs.SIZE), Image.Resampling.BICUBIC) for scan in small]
    return np.repeat(np.stack([np.asarray(scan) for scan in large])[:, None], 3, axis=1)


def labels() -> np.ndarray:
    """(10 * PER_CLASS,) int64, the same for every environment."""
    return np.arange(10 * PER_CLASS, dtype=np.int64) % 10


def make_images() -> dict[str, np.ndarray]:
    """Every environment's images, (1500, 3, 32, 32) uint8 each; about ten seconds, with a progress bar."""
    from tqdm import tqdm

    images = {"H": handwritten()}
    for environment in LOOKS:
        images[environment] = np.stack(
            [
                render(environment, index)
                for index in tqdm(range(10 * PER_CLASS), desc=f"DigitStyles {environment}", unit="image", disable=None)
            ]
        )
    return images


@cache
def recipe() -> str:
    """A digest of the drawing code and of its libraries' versions. A cache with another digest is stale."""
    import matplotlib
    import scipy
    import sklearn
    from PIL import Image

    source = "".join(inspect.getsource(part) for part in (glyphs, paints, _print, _outline, _art, render, handwritten))
    versions = [module.__version__ for module in (np, matplotlib, scipy, sklearn, Image)]
    return hashlib.sha256("\n".join([source, *versions, str(PER_CLASS)]).encode()).hexdigest()


def _digest(images: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(images[name].tobytes() for name in ENVIRONMENTS)).hexdigest()


def _read(path: Path) -> dict[str, np.ndarray]:
    """The cached images. Raises ValueError with the reason if they are damaged or of another recipe."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            if str(archive["recipe"]) != recipe():
                raise ValueError("was drawn by another version of the code or of its libraries")
            images = {name: archive[name] for name in ENVIRONMENTS}
            if str(archive["digest"]) != _digest(images):
                raise ValueError("does not hold what was written")
    except (OSError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError("is damaged") from error
    return images


def load_images(data_dir: str | None) -> dict[str, np.ndarray]:
    """Every environment's images, (1500, 3, 32, 32) uint8 each, from the cache in `data_dir` or drawn and cached.

    Raises InputError if `data_dir` is missing or cannot be written to.
    """
    if not data_dir:
        raise InputError("DigitStyles has no data folder: give --data_dir a folder to keep its images in (10 MB).")
    path = Path(data_dir) / FOLDER / FILE
    if path.exists():
        try:
            return _read(path)
        except ValueError as reason:
            print(f"{path} {reason}: drawing DigitStyles again.")
    _check_writable(path)
    with preserved_rng():  # scikit-learn draws when it is imported; a run that finds the images draws nothing here
        images = make_images()
    content = BytesIO()
    arrays: dict[str, Any] = {"recipe": recipe(), "digest": _digest(images), **images}
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())
    return images


def _check_writable(path: Path) -> None:
    """Raise InputError before the drawing if the images could not be written after it."""
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"Cannot write DigitStyles to {path.parent} ({folder} is not a folder that you may write "
            "to): give --data_dir another folder."
        )


@cache
def digit_styles_class(base: type) -> type:
    """The dataset class DigitStyles for a host; base: the host's `datasets.MultipleDomainDataset`."""

    class DigitStyles(base):
        """datasets[i]: environment ENVIRONMENTS[i], x (3, 32, 32) float32 in [0, 1], y int64; no augmentation."""

        ENVIRONMENTS = ENVIRONMENTS
        CLASS_NAMES = CLASS_NAMES
        INPUT_SHAPE = (3, glyphs.SIZE, glyphs.SIZE)
        N_STEPS = 301
        CHECKPOINT_FREQ = 150
        N_WORKERS = 0

        def __init__(self, root: str, test_envs: list[int], hparams: dict):
            super().__init__()
            images, y = load_images(root), torch.from_numpy(labels())
            self.datasets = [
                torch.utils.data.TensorDataset(torch.from_numpy(images[name]).float() / 255, y) for name in ENVIRONMENTS
            ]
            self.input_shape = self.INPUT_SHAPE
            self.num_classes = len(CLASS_NAMES)

    DigitStyles.__qualname__ = "DigitStyles"
    return DigitStyles


def write_folder(folder: Path, images: int) -> None:
    """Write the first `images` images of every environment as folder/<environment>/<class>/<number>.png."""
    from PIL import Image

    drawn = {"H": handwritten()[:images]}
    drawn.update({name: np.stack([render(name, index) for index in range(images)]) for name in LOOKS})
    for name, pictures in drawn.items():
        for index, (picture, label) in enumerate(zip(pictures, labels())):
            png = BytesIO()
            Image.fromarray(np.moveaxis(picture, 0, -1)).save(png, "PNG")
            write_atomically(folder / name / CLASS_NAMES[label] / f"{index:05d}.png", png.getvalue())


def main() -> None:
    """Draw a contact sheet: a block of rows per environment, a column per digit."""
    parser = argparse.ArgumentParser(description="Draw a sheet of DigitStyles, or a folder environment/class/image.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", help="the PNG file to write")
    what.add_argument("--folder", type=Path, help="the folder to write")
    parser.add_argument("--images", type=int, default=200, help="--folder: of each environment; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.folder:
        write_folder(arguments.folder, arguments.images)
        return
    rows = [handwritten()[:40]]
    rows += [np.stack([render(environment, index) for index in range(40)]) for environment in LOOKS]
    write_sheet(np.concatenate(rows), 20, arguments.sheet)


if __name__ == "__main__":
    sys.exit(exit_status(main))
