"""The training set of the pocket LDM: digits in random styles, each with a caption. It stands for the web's images.

It contains no image of DigitStyles. Nothing here reads scikit-learn or `digit_styles`. The generator of a render is
seeded by the identity ("pocket pre-training", seed, index); no benchmark image has an identity with this first word.
"""

from collections.abc import Sequence
from multiprocessing import get_context

import numpy as np
from scipy import ndimage

from ..seeding import seed_of
from . import CLASS_NAMES, glyphs, paints

NAMESPACE = "pocket pre-training"
TEMPLATES = ("a photo of a {}", "{}", "the digit {}", "a picture of a {}", "an image of the number {}")
CHUNK = 500


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The generator of render `index` of the pre-training set `seed`."""
    return np.random.Generator(np.random.PCG64(seed_of(NAMESPACE, seed, index)))


def _legible_paints(rng: np.random.Generator, coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two paints whose mean colours differ by more than each paint varies, so that a person can read the digit."""
    weight = coverage[:, :, None] / max(coverage.sum(), 1.0)
    for _ in range(12):
        ink, ground = paints.any_paint(rng), paints.any_paint(rng)
        apart = np.linalg.norm((ink * weight).sum((0, 1)) - ground.mean((0, 1)))
        if apart > 0.5 + 1.2 * (ground.std((0, 1)).mean() + 0.5 * ink.std((0, 1)).mean()):
            return ink, ground
    light = np.ones((glyphs.GRID, glyphs.GRID, 3))
    return (light * 0, light) if ground.mean() > 0.5 else (light, light * 0)


def _spoil(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The damage that a camera, a scan or a file format does to a picture: blur, fewer pixels, grain."""
    chance = rng.random()
    if chance < 0.2:
        sigma = rng.uniform(0.5, 2.0)
        picture = ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="nearest")
    elif chance < 0.3:
        factor = rng.uniform(3, 7)
        few = ndimage.zoom(
            ndimage.gaussian_filter(picture, (factor / 2, factor / 2, 0)),
            (1 / factor, 1 / factor, 1),
            order=1,
            mode="nearest",
            grid_mode=True,
        )
        picture = ndimage.zoom(
            few, (glyphs.GRID / few.shape[0], glyphs.GRID / few.shape[1], 1), order=3, mode="nearest", grid_mode=True
        )
    if rng.random() < 0.12:
        picture = picture + rng.normal(0, rng.uniform(0.02, 0.12), picture.shape)
    return picture


def render(seed: int, index: int) -> tuple[np.ndarray, int]:
    """(image (3, SIZE, SIZE) uint8, digit) number `index` of the pre-training set `seed`."""
    rng = rng_of(seed, index)
    digit = int(rng.integers(10))
    written = rng.random() < 0.35
    shape = (
        glyphs.stroke_shape(digit, rng) if written else glyphs.font_shape(int(rng.integers(len(glyphs.FONTS))), digit)
    )
    shape = glyphs.warp(shape, rng, 15, 0.25, (0.8, 1.3), 5, elastic=rng.choice([0, 1.0, 2.5]))
    manner = rng.random()
    grow = 0.0 if written else rng.uniform(-0.4, 1.2)
    solid = glyphs.fill(shape, grow)
    line = glyphs.outline(shape, rng.uniform(0.7, 1.8), grow + 0.5)
    coverage = line if manner < 0.22 else solid
    if rng.random() < 0.25:
        dark = rng.random() < 0.6
        ink, ground = np.full((1, 1, 3), float(not dark)), np.full((1, 1, 3), float(dark))
    else:
        ink, ground = _legible_paints(rng, coverage)
    picture = glyphs.compose(coverage, ink, ground)
    if manner > 0.88:
        picture = glyphs.compose(line, paints.colour(rng)[None, None], picture)
    return glyphs.finish(_spoil(rng, picture)), digit


def _render_chunk(task: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, start, stop = task
    images, digits = zip(*(render(seed, index) for index in range(start, stop)))
    return np.stack(images), np.array(digits)


def render_many(seed: int, start: int, stop: int, workers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Renders start to stop-1: images (n, 3, SIZE, SIZE) uint8 and digits (n,) int64, with a progress bar."""
    from tqdm import tqdm

    tasks = [(seed, at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK)]
    with get_context("spawn").Pool(workers) as pool:
        parts = list(tqdm(pool.imap(_render_chunk, tasks), total=len(tasks), desc="render", unit="chunk"))
    return np.concatenate([images for images, _ in parts]), np.concatenate([digits for _, digits in parts])


def prompts() -> tuple[str, ...]:
    """Every caption of a digit, then the empty one. The caption of template t and digit c has number t * 10 + c."""
    return captions(TEMPLATES, CLASS_NAMES)


def captions(templates: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Every caption, then the empty one. That of template t and class c has number t * classes + c."""
    return tuple(template.format(name) for template in templates for name in names) + ("",)
