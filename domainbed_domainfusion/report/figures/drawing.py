"""A figure as a grid of pictures and noise images, drawn by matplotlib at print size (7 inches, 300 dots an inch).

All noise images of a figure share one colour scale: magma, whose lightness rises evenly, so that readers with any
colour vision, and a print in grey, see the same order.
"""

from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from .noise import Noise

WIDTH, HEIGHT, DPI = 7.0, 9.2, 300  # at most the inches of a page's text area
LABEL, GAP, LARGEST = 1.08, 0.07, 1.15  # inches: width of row labels, gap between cells, largest cell
HEAD, NOTE, BETWEEN, SCALE = 0.34, 0.17, 0.16, 0.72  # inches: column heads, a line of text, groups, the colour bar
SCALE_WIDTH, LABEL_LETTERS = 2.9, 17  # inches for the words above the colour bar; letters per line of a row's label
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "figure.facecolor": "white",
}
INK, SOFT = "#16191d", "#454b55"
QUANTILE = 0.99  # quantile of all latent pixels at the top of the colour scale: outliers would darken all others


@dataclass(frozen=True)
class PictureRow:
    """Pictures or noise images from left to right; None is an empty cell. `notes` go below the cells."""

    label: tuple[str, ...]  # lines, the first in bold
    cells: list[torch.Tensor | Noise | None]  # (3, S, S) uint8, or Noise
    notes: list[str] | None = None


def top_of(groups: list[list[PictureRow]]) -> float:
    """The top of the figure's colour scale, rounded up to two significant digits."""
    magnitudes = [
        cell.magnitude.flatten() for rows in groups for row in rows for cell in row.cells if isinstance(cell, Noise)
    ]
    top = torch.cat(magnitudes).quantile(QUANTILE).item()
    digit = 10.0 ** (np.floor(np.log10(top)) - 1) if top > 0 else 1.0
    return float(np.ceil(top / digit) * digit)


def draw(heads: list[str], groups: list[list[PictureRow]], top: float) -> Figure:
    """The figure of groups of rows under column heads; `top` is the top of the colour scale.

    Everything is drawn in one axes whose units are inches from the upper left corner.
    """
    rows = [row for group in groups for row in group]
    noisy = any(isinstance(cell, Noise) for row in rows for cell in row.cells)
    fixed = HEAD + (SCALE if noisy else GAP) + BETWEEN * (len(groups) - 1) + sum(_height(row, 0) for row in rows)
    cell = min(LARGEST, (WIDTH - LABEL) / len(heads) - GAP, (HEIGHT - fixed) / len(rows))
    width, height = LABEL + max(SCALE_WIDTH if noisy else 0, len(heads) * (cell + GAP)), fixed + cell * len(rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for column, head in enumerate(heads):
            _text(axes, LABEL + column * (cell + GAP) + cell / 2, HEAD - 0.05, head, va="bottom")
        y = HEAD
        noise: AxesImage | None = None
        for group in groups:
            for row in group:
                noise = _draw_row(axes, row, y, cell, top) or noise
                y += _height(row, cell)
            y += BETWEEN
        if noise is not None:
            _draw_scale(figure, axes, noise, height)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure


def save(figure: Figure, path: str) -> None:
    """Write the figure as PNG; the same figure gives the same bytes."""
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})


def _height(row: PictureRow, cell: float) -> float:
    return cell + GAP + (NOTE if row.notes else 0)


def _draw_row(axes: Axes, row: PictureRow, y: float, cell: float, top: float) -> AxesImage | None:
    """Draw one row. Returns one of its noise images for the colour bar, None if it has none."""
    lines = [(line, number == 0) for number, text in enumerate(row.label) for line in wrap(text, LABEL_LETTERS)]
    for number, (line, first) in enumerate(lines):
        middle = y + cell / 2 + NOTE * (number - (len(lines) - 1) / 2)
        _text(
            axes,
            0.04,
            middle,
            line,
            ha="left",
            va="center",
            weight="bold" if first else "normal",
            color=INK if first else SOFT,
        )
    drawn = None
    for column, content in enumerate(row.cells):
        x = LABEL + column * (cell + GAP)
        if content is None:
            _text(axes, x + cell / 2, y + cell / 2, "–", va="center", color=SOFT)
            continue
        place: dict[str, Any] = {"extent": (x, x + cell, y + cell, y), "origin": "upper"}
        if isinstance(content, Noise):
            drawn = axes.imshow(
                content.magnitude.numpy(), cmap="magma", vmin=0, vmax=top, interpolation="nearest", **place
            )
        else:
            axes.imshow(content.permute(1, 2, 0).numpy(), **place)
        axes.add_patch(Rectangle((x, y), cell, cell, fill=False, linewidth=0.4, edgecolor="#9aa1ab"))
        if row.notes:
            _text(axes, x + cell / 2, y + cell + 0.04, row.notes[column], va="top")
    return drawn


def _draw_scale(figure: Figure, axes: Axes, noise: AxesImage, height: float) -> None:
    _text(
        axes, LABEL, height - 0.47, "LD noise: root mean square of ε$_φ$ − ε per latent pixel", ha="left", va="bottom"
    )
    width = figure.get_figwidth()
    scale = figure.add_axes((LABEL / width, 0.31 / height, 2.4 / width, 0.11 / height))
    bar = figure.colorbar(noise, cax=scale, orientation="horizontal", extend="max")
    bar.outline.set_linewidth(0.4)
    scale.tick_params(length=2, width=0.4, pad=1.5, labelsize=7)


def _text(axes: Axes, x: float, y: float, text: str, ha: str = "center", color: str = INK, **options: Any) -> None:
    axes.text(x, y, text, ha=ha, color=color, **options)
