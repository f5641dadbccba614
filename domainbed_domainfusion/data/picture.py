"""What one image file is: whether it can be read, how its pixels are stored, and a digest of its bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..hosting.readable_images import UNREADABLE, cut_images_are_errors, decode

ORIENTATION = 274  # the EXIF tag; 1 is upright
BLOCK = 10_000  # images handed to the threads at a time


@dataclass(frozen=True)
class Picture:
    """One image file."""

    path: Path
    broken: bool = False  # Pillow cannot decode it, or not the whole of it
    dangling: bool = False  # a link to a file that does not exist
    mode: str = ""  # Pillow's: RGB, L, CMYK, I;16, …
    frames: int = 1
    turned: bool = False  # its EXIF orientation is not upright; torchvision's loader does not turn it
    digest: str = ""  # SHA-256 of the file


def read_picture(path: Path) -> Picture:
    """Decode the image, every byte of it. Never raises: a file that cannot be read is `broken`."""
    if path.is_symlink() and not path.exists():
        return Picture(path, broken=True, dangling=True)
    try:
        content = path.read_bytes()
        with Image.open(path) as image:
            mode = image.mode  # before the decoding, which may change it
            frames = getattr(image, "n_frames", 1)
            turned = image.getexif().get(ORIENTATION, 1) != 1
            decode(image)
    except UNREADABLE:
        return Picture(path, broken=True)
    return Picture(path, False, False, mode, frames, turned, hashlib.sha256(content).hexdigest())


def read_pictures(paths: Sequence[Path]) -> Iterator[Picture]:
    """`read_picture` of each path, in order, on all cores and with a bar. An image that is cut short is broken."""
    with (
        cut_images_are_errors(),
        ThreadPoolExecutor(cpu_count()) as pool,
        tqdm(total=len(paths), desc="reading images", disable=None) as bar,
    ):
        for start in range(0, len(paths), BLOCK):
            for picture in pool.map(read_picture, paths[start : start + BLOCK]):
                bar.update()
                yield picture
