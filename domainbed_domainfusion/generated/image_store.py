"""The images of the generate-dataset: one preallocated block, written in place, that loader workers see as it changes.

A block up to IN_MEMORY bytes lies in memory. A larger one is a file in the job's folder that is mapped into memory: the
system keeps there what fits and writes the rest to the disk. 410,000 images of 320 × 320 pixels are such a file of
126 GB.
"""

import mmap
import multiprocessing
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import torch

from ..errors import InputError

IN_MEMORY = 2**31  # bytes


def store_bytes(images: int, size: int) -> int:
    """Bytes of a store of so many images of size × size pixels."""
    return images * 3 * size * size


def is_file(images: int, size: int) -> bool:
    """Whether the store of so many images is a file in place of memory."""
    return store_bytes(images, size) > IN_MEMORY


class ImageStore:
    """`images`: (N, 3, size, size) uint8, shared with the processes that are forked from this one.

    Args:
        count: N.
        size: pixels a side.
        folder: where a block larger than IN_MEMORY lies; None for the system's temporary folder.

    A file has no name where processes are forked, so it is gone with the last process that uses it, however that ends.
    Where workers are started afresh (spawn), the file has a name until the store is collected, and a worker opens it.
    Raises InputError if the disk has no room for the file.
    """

    def __init__(self, count: int, size: int, folder: str | Path | None = None):
        self.shape = (count, 3, size, size)
        self.path: str | None = None
        length = max(1, store_bytes(count, size))
        forks = multiprocessing.get_start_method() == "fork"
        if forks and not is_file(count, size):
            self._map(-1, length)
            return
        check_space(folder, length)
        handle, path = tempfile.mkstemp(dir=folder, prefix=".images-")
        try:
            os.truncate(path, length)
            self._map(handle, length)
        finally:
            os.close(handle)
        if forks:
            os.unlink(path)
        else:
            self.path = path
            weakref.finalize(self, os.unlink, path)

    def _map(self, handle: int, length: int) -> None:
        self._block = mmap.mmap(handle, length)  # shared, so that a forked process sees what is written later
        flat = torch.frombuffer(self._block, dtype=torch.uint8)
        self.images = flat[: store_bytes(self.shape[0], self.shape[-1])].view(self.shape)

    def __getstate__(self) -> dict:
        if self.path is None:
            raise TypeError("an image store without a file is shared with forked processes only")
        return {"shape": self.shape, "path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.shape, self.path = state["shape"], state["path"]
        handle = os.open(state["path"], os.O_RDWR)
        try:
            self._map(handle, os.fstat(handle).st_size)
        finally:
            os.close(handle)


def check_space(folder: str | Path | None, needed: int) -> None:
    """Raise InputError unless the disk of `folder` (None: the temporary folder) has `needed` bytes free."""
    folder = Path(folder or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The generated images take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: free some "
            "space, choose another output folder, or set the hparam generation_budget to fewer images."
        )
