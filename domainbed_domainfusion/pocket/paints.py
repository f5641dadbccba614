"""What glyphs and their backgrounds are painted with: (GRID, GRID, 3) pictures in [0, 1] drawn from a generator."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from .glyphs import GRID


def colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour (3,), as often vivid as grey or pale."""
    shade = rng.uniform(0, 1, 3)
    return shade if rng.random() < 0.7 else shade.mean() + 0.3 * (shade - shade.mean())


def gradient(rng: np.random.Generator, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """From one colour to the other, along a random direction or outwards from a random point."""
    y, x = np.mgrid[0:GRID, 0:GRID] / (GRID - 1) - 0.5
    if rng.random() < 0.7:
        angle = rng.uniform(0, 2 * np.pi)
        along = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5
    else:
        along = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5))
    return start + np.clip(along, 0, 1)[:, :, None] * (end - start)


@cache
def _spread(cells: int, smooth: bool) -> np.ndarray:
    """(GRID, cells) weights that enlarge a row of cells to the grid, in blocks or linearly."""
    if not smooth:
        return np.repeat(np.eye(cells), -(-GRID // cells), axis=0)[:GRID]
    at = np.linspace(0, cells - 1, GRID)
    return np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1)


def noise(rng: np.random.Generator, grains: Sequence[int], smooth: bool = True) -> np.ndarray:
    """Coloured noise (GRID, GRID, 3) of mean 0 and deviation about 1, a sum over `grains` (grid pixels a grain)."""
    total = np.zeros((GRID, GRID, 3))
    for grain in grains:
        cells = -(-GRID // grain) + (1 if smooth else 0)
        spread = _spread(cells, smooth)
        total += np.einsum("ya,xb,abc->yxc", spread, spread, rng.normal(0, 1, (cells, cells, 3)), optimize=True)
    return total / np.sqrt(len(grains))


def stripes(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Stripes, checks or waves of two colours, at any angle, hard or soft."""
    y, x = np.mgrid[0:GRID, 0:GRID]
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    phase = 2 * np.pi / period
    wave = np.sin(phase * u + rng.uniform(0, 6.3))
    if rng.random() < 0.5:
        wave = wave * np.sin(phase * v + rng.uniform(0, 6.3))
    mix = np.clip(0.5 + wave * rng.uniform(0.5, 4), 0, 1)
    return first + mix[:, :, None] * (second - first)


def any_paint(rng: np.random.Generator) -> np.ndarray:
    """Flat colour, black, white, gradient, noise of one or several grains, stripes or checks, or a mixture."""
    kind = rng.choice(["flat", "black", "white", "gradient", "noise", "stripes"], p=[0.16, 0.1, 0.12, 0.2, 0.32, 0.1])
    if kind in ("black", "white"):
        return np.full((GRID, GRID, 3), float(kind == "white"))
    first, second = colour(rng), colour(rng)
    if kind == "flat":
        return np.broadcast_to(first, (GRID, GRID, 3))
    if kind == "stripes":
        return stripes(rng, first, first + rng.uniform(0.3, 1) * (second - first))
    base = gradient(rng, first, first + rng.uniform(0.2, 1) * (second - first))
    if kind == "noise":
        if rng.random() < 0.6:
            base = np.broadcast_to(first, (GRID, GRID, 3))
        grains = rng.choice([2, 4, 8, 16, 32], size=rng.integers(1, 4), replace=False, p=[0.12, 0.22, 0.22, 0.22, 0.22])
        texture = noise(rng, [int(grain) for grain in grains], smooth=rng.random() < 0.6)
        if rng.random() < 0.25:
            texture = texture.mean(2, keepdims=True) * 1.7
        base = base + rng.uniform(0.04, 0.3) * texture
    return np.clip(base, 0, 1)
