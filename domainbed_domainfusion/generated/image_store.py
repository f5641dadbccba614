"""The images of the generate-dataset: one preallocated block, overwritten in place, that the loader workers share.

A block of up to MOST_BYTES_IN_MEMORY lies in memory. A larger one is a memory-mapped file in the job's folder: the
operating system keeps in memory as much as fits, and the rest on the disk. 410,000 images of 320 × 320 pixels make a
file of 126 GB.
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

MOST_BYTES_IN_MEMORY = 2**31  # bytes


def store_bytes(images: int, size: int) -> int:
    """Bytes of a store of `images` images of size × size pixels."""
    return images * 3 * size * size


def is_on_disk(images: int, size: int) -> bool:
    """Whether a store of `images` images of size × size pixels is a file, because it is too large for memory."""
    return store_bytes(images, size) > MOST_BYTES_IN_MEMORY


class ImageStore:
    """`images`: (N, 3, size, size) uint8, in memory that this process shares with its loader workers.

    Args:
        count: N.
        size: pixels a side.
        folder: for the file of a block larger than MOST_BYTES_IN_MEMORY; None for the system's temporary folder.

    Start method "fork": the file is unlinked as soon as it is mapped. So the system frees it when the last process that
    uses it ends, even by a crash. Start method "spawn": there is always a file. It keeps its name, so that a worker can
    open it, until this object is collected. Raises InputError if the disk has no room for the file.
    """

    def __init__(self, count: int, size: int, folder: str | Path | None = None):
        self.shape = (count, 3, size, size)
        self.path: str | None = None
        length = max(1, store_bytes(count, size))
        forks = multiprocessing.get_start_method() == "fork"
        if forks and not is_on_disk(count, size):
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
        self._block = mmap.mmap(handle, length)  # a shared mapping: forked processes see later writes
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
