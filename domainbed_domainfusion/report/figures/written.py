"""The supplement's figures in a folder, read for a page: `figures.json` and the PNG files that it names."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

FOLDER = "figures"  # in a job's generated/, where `domainfusion figures` writes and `report` looks
INDEX = "figures.json"


@dataclass(frozen=True)
class DrawnFigure:
    """One figure: its file, its title and caption, and the numbers behind it."""

    file: str
    title: str
    caption: str
    top: float  # of the colour scale of its noise images
    images: list[dict[str, Any]]  # key, domain, class_name, seed, background, noise: [{round, corruption, p, ld}]


@dataclass(frozen=True)
class ShownFigure:
    """A figure with its PNG as data and its size in pixels."""

    drawn: DrawnFigure
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Figures:
    """The figures of a folder, the command that drew them, the LDM's name, and a note on the noise images."""

    command: str
    ldm: str
    note: str
    shown: tuple[ShownFigure, ...]


def read_figures(folder: Path) -> Figures | None:
    """The figures in a folder whose PNG can be read; None if there is none."""
    try:
        index = json.loads((folder / INDEX).read_text())
        shown = tuple(one for one in (_shown(folder, DrawnFigure(**entry)) for entry in index["figures"]) if one)
        return Figures(index["command"], index["ldm"], index["note"], shown) if shown else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shown(folder: Path, drawn: DrawnFigure) -> ShownFigure | None:
    try:
        png = (folder / drawn.file).read_bytes()
        with Image.open(folder / drawn.file) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError):
        return None
    return ShownFigure(drawn, "data:image/png;base64," + base64.b64encode(png).decode(), width, height)
