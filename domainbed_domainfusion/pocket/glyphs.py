"""Digit shapes as signed distance fields: from the fonts that matplotlib ships, and from hand-drawn strokes.

A shape is a field d: (GRID, GRID) float32, in grid pixels, negative inside the glyph. One field gives the filled
glyph at any thickness (`fill`) and its outline (`outline`), and can be bent before either (`warp`).
"""

from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

SIZE = 32
"""Side of a finished image, pixels."""
GRID = 64
"""Side of the drawing, pixels: twice SIZE, averaged down at the end."""
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)

# Hand-drawn skeletons, ours: for each digit a few ways to write it, each way a list of pen strokes, each stroke a
# list of (x, y) the pen passes through, in a box of width 1 and height 1 with y downwards.
STROKES = (
    (
        ([(0.5, 0), (0.15, 0.2), (0.1, 0.6), (0.4, 1), (0.75, 0.9), (0.9, 0.5), (0.8, 0.15), (0.5, 0)],),
        ([(0.6, 0.05), (0.25, 0.15), (0.15, 0.6), (0.45, 0.97), (0.8, 0.7), (0.8, 0.25), (0.45, 0.02)],),
    ),
    (
        ([(0.5, 0), (0.5, 0.5), (0.5, 1)],),
        ([(0.3, 0.22), (0.55, 0), (0.55, 0.5), (0.55, 1)],),
        ([(0.25, 0.25), (0.5, 0), (0.5, 0.5), (0.5, 1)], [(0.25, 1), (0.5, 1), (0.78, 1)]),
    ),
    (
        ([(0.12, 0.25), (0.35, 0.02), (0.75, 0.08), (0.8, 0.35), (0.5, 0.65), (0.1, 1), (0.5, 0.98), (0.92, 0.98)],),
        ([(0.15, 0.15), (0.5, 0), (0.8, 0.22), (0.6, 0.6), (0.25, 0.9), (0.1, 0.85), (0.35, 0.8), (0.9, 1)],),
    ),
    (
        (
            [
                (0.15, 0.1),
                (0.5, 0),
                (0.8, 0.2),
                (0.65, 0.42),
                (0.4, 0.48),
                (0.7, 0.55),
                (0.88, 0.78),
                (0.55, 1),
                (0.12, 0.88),
            ],
        ),
        (
            [
                (0.15, 0.05),
                (0.5, 0.03),
                (0.8, 0.05),
                (0.6, 0.25),
                (0.45, 0.4),
                (0.75, 0.5),
                (0.85, 0.75),
                (0.5, 1),
                (0.12, 0.9),
            ],
        ),
    ),
    (
        ([(0.65, 0), (0.4, 0.3), (0.08, 0.68), (0.5, 0.68), (0.95, 0.68)], [(0.68, 0.02), (0.68, 0.5), (0.68, 1)]),
        ([(0.2, 0), (0.15, 0.25), (0.15, 0.5), (0.5, 0.52), (0.85, 0.5)], [(0.8, 0.0), (0.78, 0.5), (0.75, 1)]),
        ([(0.4, 0), (0.25, 0.3), (0.12, 0.6), (0.5, 0.62), (0.92, 0.58)], [(0.65, 0.35), (0.6, 0.7), (0.55, 1)]),
    ),
    (
        (
            [
                (0.85, 0.02),
                (0.5, 0.02),
                (0.2, 0.04),
                (0.16, 0.42),
                (0.5, 0.38),
                (0.85, 0.6),
                (0.75, 0.9),
                (0.45, 1),
                (0.1, 0.9),
            ],
        ),
        (
            [(0.25, 0.03), (0.2, 0.25), (0.18, 0.45), (0.55, 0.42), (0.8, 0.65), (0.6, 0.95), (0.12, 0.95)],
            [(0.25, 0.03), (0.55, 0.02), (0.88, 0.03)],
        ),
    ),
    (
        (
            [
                (0.7, 0),
                (0.35, 0.25),
                (0.13, 0.65),
                (0.3, 0.97),
                (0.7, 0.95),
                (0.85, 0.7),
                (0.6, 0.52),
                (0.3, 0.58),
                (0.16, 0.75),
            ],
        ),
        ([(0.4, 0), (0.2, 0.4), (0.15, 0.8), (0.5, 1), (0.82, 0.8), (0.65, 0.57), (0.35, 0.6), (0.2, 0.78)],),
    ),
    (
        ([(0.1, 0.03), (0.5, 0.03), (0.88, 0.03), (0.6, 0.45), (0.4, 1)],),
        (
            [(0.1, 0.15), (0.12, 0.03), (0.5, 0.03), (0.85, 0.03), (0.65, 0.5), (0.5, 1)],
            [(0.3, 0.5), (0.55, 0.48), (0.85, 0.46)],
        ),
        ([(0.12, 0.08), (0.5, 0.02), (0.85, 0.05), (0.7, 0.35), (0.5, 0.65), (0.42, 1)],),
    ),
    (
        (
            [
                (0.75, 0.12),
                (0.45, 0),
                (0.2, 0.2),
                (0.45, 0.45),
                (0.8, 0.75),
                (0.5, 1),
                (0.17, 0.78),
                (0.5, 0.48),
                (0.8, 0.25),
                (0.7, 0.08),
            ],
        ),
        (
            [
                (0.5, 0.46),
                (0.22, 0.25),
                (0.5, 0),
                (0.78, 0.22),
                (0.5, 0.46),
                (0.15, 0.75),
                (0.5, 1),
                (0.85, 0.75),
                (0.5, 0.46),
            ],
        ),
    ),
    (
        ([(0.82, 0.2), (0.5, 0), (0.2, 0.2), (0.3, 0.48), (0.65, 0.48), (0.82, 0.2), (0.8, 0.6), (0.7, 1)],),
        (
            [
                (0.8, 0.25),
                (0.5, 0.02),
                (0.2, 0.22),
                (0.4, 0.5),
                (0.75, 0.35),
                (0.8, 0.2),
                (0.78, 0.6),
                (0.55, 0.95),
                (0.2, 0.95),
            ],
        ),
    ),
)


@cache
def font_shape(font: int, digit: int) -> np.ndarray:
    """d: (GRID, GRID), the digit of that font, centred, two thirds of the box high."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FONTS[font]}.ttf")
    side = 4 * GRID
    probe = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC).getbbox(str(digit))
    points = round(100 * side * 2 / 3 / (probe[3] - probe[1]))
    face = ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(str(digit))
    page = Image.new("L", (side, side))
    ImageDraw.Draw(page).text(((side - right - left) / 2, (side - bottom - top) / 2), str(digit), 255, font=face)
    inside = np.asarray(page) > 127
    field = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    return (field.reshape(GRID, 4, GRID, 4).mean((1, 3)) / 4).astype(np.float32)


def _through(points: np.ndarray, steps: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through `points`: (n, 2) -> ((n - 1) * steps + 1, 2)."""
    p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def stroke_shape(digit: int, rng: np.random.Generator) -> np.ndarray:
    """d: (GRID, GRID), the digit written with a round pen of random width by an unsteady hand."""
    ways = STROKES[digit]
    width, height = GRID * rng.uniform(0.32, 0.52), GRID * 2 / 3
    corner = np.array([(GRID - width) / 2, (GRID - height) / 2])
    unsteady = rng.uniform(0.01, 0.05)
    y, x = np.mgrid[0:GRID, 0:GRID].astype(np.float32)[:, :, :, None]
    nearest = np.full((GRID, GRID), np.inf, np.float32)
    for stroke in ways[rng.integers(len(ways))]:
        points = np.array(stroke) + rng.normal(0, unsteady, (len(stroke), 2))
        curve = (_through(points) * [width, height] + corner).astype(np.float32)
        (x0, y0), (x1, y1) = curve[:-1].T, curve[1:].T
        length2 = np.maximum((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-6)
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length2, 0, 1)
        distance2 = (x - x0 - along * (x1 - x0)) ** 2 + (y - y0 - along * (y1 - y0)) ** 2
        nearest = np.minimum(nearest, distance2.min(-1))
    return np.sqrt(nearest) - rng.uniform(1.2, 4.2)


@cache
def _bumps(knots: int) -> np.ndarray:
    """(GRID, knots) weights that spread a few knots smoothly over the grid; rows sum to one."""
    centres = np.linspace(0, GRID - 1, knots)
    weights = np.exp(-0.5 * ((np.arange(GRID)[:, None] - centres) / (GRID / (knots - 1) * 0.55)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def warp(
    shape: np.ndarray,
    rng: np.random.Generator,
    degrees: float,
    shear: float,
    scale: tuple[float, float],
    shift: float,
    elastic: float = 0.0,
) -> np.ndarray:
    """`shape` turned, sheared, scaled, shifted and bent at random; d stays in grid pixels.

    degrees, shear, shift: largest absolute value of each (shift in grid pixels); scale: (least, most) size, drawn
    for height and, within a fifth of it, for width; elastic: standard deviation of the bending, grid pixels.
    """
    angle, slant = np.deg2rad(rng.uniform(-degrees, degrees)), rng.uniform(-shear, shear)
    high = rng.uniform(*scale)
    wide = high * rng.uniform(0.8, 1.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.array([[1, 0], [slant, 1]]) @ np.diag([high, wide]))
    middle = (GRID - 1) / 2
    at = np.mgrid[0:GRID, 0:GRID].reshape(2, -1) - middle - rng.uniform(-shift, shift, (2, 1))
    at = (inverse @ at).reshape(2, GRID, GRID) + middle
    if elastic:
        knots = int(rng.integers(3, 6))
        bumps = _bumps(knots)
        at = at + np.stack([bumps @ rng.normal(0, elastic, (knots, knots)) @ bumps.T for _ in range(2)])
    return (ndimage.map_coordinates(shape, at, order=1, mode="nearest") * high).astype(np.float32)


def fill(shape: np.ndarray, grow: float = 0.0) -> np.ndarray:
    """Coverage (GRID, GRID) in [0, 1] of the glyph, grown by that many grid pixels (negative: thinner)."""
    return np.clip(0.5 + grow - shape, 0, 1)


def outline(shape: np.ndarray, half_width: float, grow: float = 0.0) -> np.ndarray:
    """Coverage (GRID, GRID) in [0, 1] of the line of that half-width, grid pixels, along the glyph's edge."""
    return np.clip(0.5 + half_width - np.abs(shape - grow), 0, 1)


def finish(picture: np.ndarray) -> np.ndarray:
    """A drawing (GRID, GRID, 3) averaged down to an image (3, SIZE, SIZE) uint8."""
    small = picture.reshape(SIZE, GRID // SIZE, SIZE, GRID // SIZE, 3).mean((1, 3))
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(2, 0, 1)


def compose(coverage: np.ndarray, ink: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """`ink` where `coverage` (GRID, GRID) is 1, `ground` where it is 0; both broadcast to (GRID, GRID, 3)."""
    return ground + coverage[:, :, None] * (ink - ground)
