"""Work in micro-batches that fit into memory: they are halved whenever an allocation fails."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import InputError

Result = TypeVar("Result")

#: The CPU allocator's name; CUDA's words; the status of cuBLAS, cuDNN and cuSOLVER, e.g. CUBLAS_STATUS_ALLOC_FAILED.
OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|out of memory|_ALLOC(ATION)?_FAILED")


def in_micro_batches(
    run: Callable[[slice], Result], count: int, limit: int | None = None
) -> tuple[list[Result], int | None]:
    """`run(slice)` over range(count) in slices of at most `limit` (None: all at once); also the limit for next time.

    If the memory of the CPU or GPU does not suffice, the slice is halved and run again. A failed `run` must therefore
    leave nothing behind. Raises InputError if not even a slice of one fits.
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
        # Outside the except block: there the traceback still holds the failed attempt's tensors.
        limit = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results, limit


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on the CPU, in torch's allocator for CUDA or in one of NVIDIA's libraries.

    torch has an exception class for its own CUDA allocator only; the other failures are known by their messages.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or OUT_OF_MEMORY.search(str(error)) is not None
