"""Originals beside their generated versions, round by round, as image data for the page."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .figures.written import FOLDER, Figures, read_figures

SIDE = 96
ROUNDS_SHOWN = 6
IMAGES_SHOWN = 6


@dataclass(frozen=True)
class ShownVersion:
    """One image of one round (0: the original); candidates count from 1.

    `uri` is the image as PNG data, None if its file cannot be read; `side` is its longer side in pixels.
    """

    round: int
    step: int
    uri: str | None
    side: int
    content: int | None
    style: int | None


@dataclass(frozen=True)
class Line:
    """One training image through the rounds; None for a round that did not generate it again."""

    domain: str
    class_name: str
    versions: tuple[ShownVersion | None, ...]


@dataclass(frozen=True)
class Choices:
    """How often each candidate gave the content and the style, as fractions, and how often the two were different."""

    content: tuple[float, ...]
    style: tuple[float, ...]
    mixed: float


@dataclass(frozen=True)
class Gallery:
    """The images that one run generated. `rounds`: (round, step) per column. `figures`: None until they are drawn."""

    rounds: tuple[tuple[int, int], ...]
    lines: tuple[Line, ...]
    choices: Choices | None
    figures: Figures | None


def read_gallery(job_folder: Path) -> Gallery | None:
    """The gallery of a run: at most 6 images in at most 6 rounds, evenly spread. None if it is missing or damaged."""
    path = job_folder / "generated" / "gallery.json"
    try:
        content = json.loads(path.read_text())
        shown = spread(content["images"], IMAGES_SHOWN)
        all_rounds = sorted({(version["round"], version["step"]) for image in shown for version in image["versions"]})
        rounds = tuple(spread(all_rounds, ROUNDS_SHOWN))
        lines = tuple(_line(image, rounds, path.parent) for image in shown)
        return Gallery(rounds, lines, _choices(content.get("choices")), read_figures(path.parent / FOLDER))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def spread(items: list, count: int) -> list:
    """At most `count` (2 or more) evenly spaced items, the first and the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _line(image: dict, rounds: tuple[tuple[int, int], ...], folder: Path) -> Line:
    by_round = {version["round"]: version for version in image["versions"]}
    return Line(
        str(image["domain"]),
        str(image["class_name"]),
        tuple(_version(by_round[number], folder) if number in by_round else None for number, _ in rounds),
    )


def _version(version: dict, folder: Path) -> ShownVersion:
    image = _read(folder / version["file"])
    content, style = (version[key] + 1 if key in version else None for key in ("content", "style"))
    if image is None:
        return ShownVersion(version["round"], version["step"], None, 0, content, style)
    return ShownVersion(version["round"], version["step"], _data_uri(image), max(image.size), content, style)


def _read(path: Path) -> Image.Image | None:
    """The image at no more than 96 pixels a side, None if it cannot be read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _data_uri(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _choices(counts: dict | None) -> Choices | None:
    if not counts or not sum(counts["content"]) or not sum(counts["style"]):
        return None
    content, style = (tuple(number / sum(counts[key]) for number in counts[key]) for key in ("content", "style"))
    return Choices(content, style, float(counts["mixed"]))
