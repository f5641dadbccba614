"""The check that every image of a dataset folder can be read: made once per folder and remembered.

The first job decodes every image. It then leaves a record in the cache folder (`~/.cache/domainfusion/readable`, or
below XDG_CACHE_HOME). Later jobs list the folder and compare it with the record:

- the number of images, and the time of last change of every folder: they show what was added, removed or renamed;
- the time of last change of 1,000 images, others in each job: it shows images that were overwritten in place.

If nothing has changed since the record, no image is decoded. Jobs that start together share one check: one of them
decodes, the others wait for its record. The environment variable DOMAINFUSION_CHECK_IMAGES=0 switches all of this off.
"""

import contextlib
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from ..errors import InputError
from ..files import write_atomically
from ..seeding import seed_of
from . import context

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE = "DOMAINFUSION_CHECK_IMAGES"
UNREADABLE = (OSError, SyntaxError, ValueError)  # what Pillow raises for files it cannot identify or decode
SAMPLE = 1000  # images whose time of last change is compared with the record at each start
BLOCK = 10_000  # images handed to the decoding threads at a time; bounds the memory for 587,000


def check_readable(root: Path) -> None:
    """Raise InputError if an image below `root` cannot be decoded. See the module's docstring for what is decoded."""
    if os.environ.get(VARIABLE) == "0":
        return
    record = _record_path(root)
    folders, images = _listing(root)
    if _known_good(record, root, folders, images):
        return
    with _one_process_at_a_time(record.with_suffix(".lock"), root):
        if not _known_good(record, root, folders, images):  # the process that held the lock may have checked it
            _decode_all(record, root, folders, images)


def has_image(folder: Path | str) -> bool:
    """Whether an image lies in the folder or below it; stops at the first."""
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                below.append(entry.path)
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                return True
    return any(map(has_image, below))


def _record_path(root: Path) -> Path:
    """One record per folder, named after its real path."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "domainfusion", "readable")
    return cache / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()}.json"


def _listing(root: Path) -> tuple[list[str], list[str]]:
    """Paths of all folders and of all images below `root`; no file is opened or looked at."""
    folders, images = [], []
    for path, _, names in sorted(os.walk(root, followlinks=True)):
        folders.append(path)
        images += [os.path.join(path, name) for name in sorted(names) if name.lower().endswith(IMG_EXTENSIONS)]
    return folders, images


def _known_good(record: Path, root: Path, folders: list[str], images: list[str]) -> bool:
    """Whether the record says that all images are readable and nothing seems to have changed since.

    Raises InputError if the record names a broken image and that image is still broken.
    """
    try:
        known = json.loads(record.read_text())
        broken = known["broken"]
        unchanged = known["images"] == len(images)
        if broken:
            if unchanged and is_broken(broken[0]):
                raise _broken_images(root, broken[1], len(images), broken[0])
            return False
        job = seed_of("images to look at", str(root), context.current().output_dir)
        sample = random.Random(job).sample(images, min(SAMPLE, len(images)))
        return unchanged and all(_changed_at(path) <= known["newest"] for path in (*folders, *sample))
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # no record, or none that can be understood
        return False


def _changed_at(path: str) -> int:
    """When the file or folder last changed, in nanoseconds.

    It is the change time (ctime) where there is one: copying tools set the modification time back, but never this one.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a link to nowhere: the decoding names it
        status = os.lstat(path)
    return status.st_mtime_ns if os.name == "nt" else status.st_ctime_ns


def _decode_all(record: Path, root: Path, folders: list[str], images: list[str]) -> None:
    """Decode every image and write the record. Raises InputError that names the first image that is broken."""
    newest = max(map(_changed_at, (*folders, *images)))  # before the decoding, so that a change meanwhile is seen later
    broken: list[str] = []
    what = f"reading {root} once ({VARIABLE}=0 skips this)"
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(images), desc=what, file=sys.__stderr__, disable=None) as bar,
    ):
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            for path, unreadable in zip(block, pool.map(is_broken, block)):
                bar.update()
                if unreadable:
                    broken.append(path)
    first = [broken[0], len(broken)] if broken else None
    _write(record, {"root": str(root), "images": len(images), "newest": newest, "broken": first})
    if broken:
        raise _broken_images(root, len(broken), len(images), broken[0])


def is_broken(path: str) -> bool:
    """Whether Pillow cannot decode the image."""
    try:
        with Image.open(path) as image:
            decode(image)
    except UNREADABLE:
        return True
    return False


def decode(image: Image.Image) -> None:
    """Read every byte of an open image; of a JPEG at an eighth of its size. Raises one of UNREADABLE."""
    image.draft("RGB", (image.width // 8, image.height // 8))
    image.load()


@contextlib.contextmanager
def cut_images_are_errors() -> Iterator[None]:
    """Both hosts let Pillow fill the missing part of an image with grey. Inside the block Pillow raises an error."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _broken_images(root: Path, count: int, total: int, first: str) -> InputError:
    return InputError(
        f"{count} of {total} images in {root} cannot be read, the first is {first}: download or copy it again, or "
        "delete it."
    )


def _write(record: Path, content: dict[str, Any]) -> None:
    """Without a record the next job only repeats the check, so a cache that cannot be written to ends no run."""
    try:
        write_atomically(record, json.dumps(content))
    except InputError as error:
        print(f"The check of the images is not remembered: {error}", file=sys.__stderr__)


@contextlib.contextmanager
def _one_process_at_a_time(path: Path, root: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it.

    The system frees the lock of a process that ends or is killed, so no lock is left behind. Where there are no such
    locks (Windows, some network file systems, a cache that cannot be written to) nobody waits.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                _lock(stack.enter_context(open(path, "a")), root)
        yield


def _lock(file: Any, root: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            f"Another process is reading the images in {root}: waiting for it ({VARIABLE}=0 skips this).",
            file=sys.__stderr__,
            flush=True,
        )
        fcntl.flock(file, fcntl.LOCK_EX)
