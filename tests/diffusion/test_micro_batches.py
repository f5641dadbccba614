"""Micro-batches cover everything once, in order, whatever fits."""

import pytest
import torch

from domainbed_domainfusion.diffusion.micro_batches import in_micro_batches
from domainbed_domainfusion.errors import InputError

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY = [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(
    "count, limit, fits, expected",
    [(10, None, 10, None), (10, 4, 10, 4), (10, None, 3, 2), (10, 8, 4, 4), (3, None, 1, 1), (7, None, 3, 3)],
)
def test_every_item_once_in_order(error, count, limit, fits, expected):
    items, sizes = list(range(count)), []

    def run(part):
        sizes.append(len(items[part]))
        if sizes[-1] > fits:
            raise error
        return items[part]

    parts, found = in_micro_batches(run, count, limit)
    assert [item for part in parts for item in part] == items and found == expected
    assert max(len(part) for part in parts) <= min(fits, limit or count)


def test_the_real_out_of_memory_of_the_cpu_is_known():
    def run(part):
        return torch.empty(2**40 if part.stop - part.start > 1 else 1, dtype=torch.float64).sum() * 0

    parts, found = in_micro_batches(run, 2)
    assert len(parts) == 2 and found == 1


def test_when_not_even_one_fits():
    def run(part):
        raise OUT_OF_MEMORY[0]

    with pytest.raises(InputError) as error:
        in_micro_batches(run, 4)
    assert str(error.value) == (
        "The LDM does not fit into memory even for one image at a time: use a smaller image "
        "size, a half-precision dtype or a machine with more memory."
    )


def test_other_errors_pass():
    def run(part):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_micro_batches(run, 4)
