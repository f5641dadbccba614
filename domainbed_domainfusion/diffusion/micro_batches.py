"""Work in micro-batches whose size is found: as large as asked, halved whenever the memory does not suffice."""

from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import InputError

Result = TypeVar("Result")


def in_micro_batches(
    run: Callable[[slice], Result], count: int, limit: int | None = None
) -> tuple[list[Result], int | None]:
    """`run(slice)` over range(count) in slices of at most `limit` (None: all at once), and the limit for next time.

    Out of memory, on a GPU or a CPU, halves the slices and repeats, so `run` must not depend on what an earlier
    attempt did. Raises InputError if not even a slice of one fits.
    """
    results: list[Result] = []
    start = 0
    while start < count:
        size = min(limit or count, count - start)
        try:
            results.append(run(slice(start, start + size)))
            start += size
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise InputError(
                    "The LDM does not fit into memory even for one image at a time: use a smaller image "
                    "size, a half-precision dtype or a machine with more memory."
                ) from error
        # outside the handler, whose traceback would keep the failed attempt's tensors alive
        limit = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results, limit


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class of its own for CUDA only; the CPU's allocator is known by its name in the message."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
