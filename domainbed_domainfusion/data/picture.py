"""What one image file is: whether it can be read, how its pixels are stored, and a digest of its bytes."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

from PIL import Image, ImageFile
from tqdm import tqdm

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
    size: tuple[int, int] = (0, 0)  # width and height in pixels
    digest: str = ""  # SHA-256 of the file


def read_picture(path: Path) -> Picture:
    """Decode the image, every byte of it. Never raises: a file that cannot be read is `broken`."""
    if path.is_symlink() and not path.exists():
        return Picture(path, broken=True, dangling=True)
    try:
        content = path.read_bytes()
        with Image.open(path) as image:
            mode, size = image.mode, image.size  # before draft, which changes both
            frames = getattr(image, "n_frames", 1)
            turned = image.getexif().get(ORIENTATION, 1) != 1
            image.draft("RGB", (image.width // 8, image.height // 8))  # a JPEG at an eighth of its size is faster
            image.load()
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for files it cannot identify or decode
        return Picture(path, broken=True)
    return Picture(path, False, False, mode, frames, turned, size, hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def _cut_images_are_errors() -> Iterator[None]:
    """The host lets Pillow fill the missing part of an image with grey. Here Pillow raises an error."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_pictures(paths: Sequence[Path]) -> Iterator[Picture]:
    """`read_picture` of each path, in order, on all cores and with a bar. An image that is cut short is broken."""
    with (
        _cut_images_are_errors(),
        ThreadPoolExecutor(cpu_count()) as pool,
        tqdm(total=len(paths), desc="reading images", disable=None) as bar,
    ):
        for start in range(0, len(paths), BLOCK):
            for picture in pool.map(read_picture, paths[start : start + BLOCK]):
                bar.update()
                yield picture
