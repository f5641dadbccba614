"""The memory that a computation needs and that a device has, in bytes: both decide the size of a micro-batch."""

import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: The share of the free memory that is used. On a CPU, other processes take memory too, and the kernels' scratch space
#: is not measured. On a GPU, the allocator leaves gaps.
SHARE = {"cpu": 0.5, "cuda": 0.8}


def items_that_fit(run_one: Callable[[], object], device: torch.device) -> int | None:
    """How many items fit into memory at once (at least 1); None if the free memory is unknown.

    run_one: handles a single item. It is run once to measure its peak.
    """
    free = free_memory(device)
    if free is None:
        return None
    return max(1, int(SHARE.get(device.type, SHARE["cpu"]) * free / max(1, peak(run_one, device))))


def peak(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors made by `run` hold at once; on a GPU, the kernels' workspaces included."""
    if device.type != "cuda":
        with _LiveTensors() as live:
            run()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def free_memory(device: torch.device) -> int | None:
    """The free memory of a GPU, torch's cache included, or of a CPU within its container's limit; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * next(int(row[1]) for row in rows if row[0] == "MemAvailable:")
    except (OSError, StopIteration):  # not Linux
        return None
    try:
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control group, or one without a limit
        return available
    return min(available, limit - used)


class _LiveTensors(TorchDispatchMode):
    """Counts the storage of every tensor made inside, from the operation that makes it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in given | self._live:
                self._add(made.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._live.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size
