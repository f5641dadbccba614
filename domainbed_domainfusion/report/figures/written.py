"""The supplement's figures as they lie in a folder, for a page: `figures.json` and the PNG files that it names."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

FOLDER = "figures"  # in a job's generated/, where `domainfusion figures` writes and `report` looks
INDEX = "figures.json"


@dataclass(frozen=True)
class Drawn:
    """One figure: its file, its words, and the numbers behind it."""

    file: str
    title: str
    caption: str
    top: float  # of the colour scale of its noise images
    images: list[dict[str, Any]]  # key, domain, class_name, seed, background, noise: [{round, corruption, p, ld}]


@dataclass(frozen=True)
class Shown:
    """A figure with its PNG as data and its size in pixels."""

    drawn: Drawn
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Figures:
    """What a folder holds: the command that drew it, the LDM by name, how the noise images are made, the figures."""

    command: str
    ldm: str
    note: str
    shown: tuple[Shown, ...]


def read_figures(folder: Path) -> Figures | None:
    """The figures written in a folder, without those whose PNG cannot be read; None if there is none."""
    try:
        index = json.loads((folder / INDEX).read_text())
        shown = tuple(one for one in (_shown(folder, Drawn(**entry)) for entry in index["figures"]) if one)
        return Figures(index["command"], index["ldm"], index["note"], shown) if shown else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shown(folder: Path, drawn: Drawn) -> Shown | None:
    try:
        png = (folder / drawn.file).read_bytes()
        with Image.open(folder / drawn.file) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError):
        return None
    return Shown(drawn, "data:image/png;base64," + base64.b64encode(png).decode(), width, height)
