"""Some images of each environment and class, small, as the host's evaluation would see them: square, in RGB."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..hosting.readable_images import UNREADABLE
from ..seeding import seed_of
from .layout import Layout


def choose(layout: Layout, environment: str, name: str, images: int) -> list[Path]:
    """`images` of the class, or all if there are fewer. Which ones depends on their names alone."""
    paths = layout.environments[environment].get(name, [])
    places = [(seed_of("sample", environment, name, path.name), path) for path in paths]
    return [path for _, path in sorted(places)[:images]]


def thumbnail(path: Path, side: int) -> bytes | None:
    """The image at side × side pixels as a JPEG, None if it cannot be read."""
    content, pixels = BytesIO(), square(path, side)
    if pixels is None:
        return None
    Image.fromarray(pixels).save(content, "JPEG", quality=85)
    return content.getvalue()


def square(path: Path, side: int) -> np.ndarray | None:
    """The image as (side, side, 3) uint8, stretched like the hosts do it; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    except UNREADABLE:
        return None
