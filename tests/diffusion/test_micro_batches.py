"""Micro-batches cover every item once, in order, for every size that fits."""

import pytest
import torch

from domainbed_domainfusion.diffusion.micro_batches import in_micro_batches, is_out_of_memory
from domainbed_domainfusion.errors import InputError

#: The texts of torch's plain RuntimeErrors, by the library whose allocation failed.
MESSAGES = {
    "CPU": "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)",
    "CUDA's runtime": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other "
    "API call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    "CUDA's driver": "CUDA driver error: out of memory",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN 8": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN 9": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN 9, in torch 2.14's words": "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many "
    "dynamic shapes, cuDNN may need additional device memory to JIT-compile shape-specialized kernels.",
    "cuSOLVER": "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
}
#: Other failures of a GPU and of its libraries. A smaller batch does not help.
OTHER_MESSAGES = [
    "shapes do not match",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, &alpha, a, lda, "
    "b, ldb, &beta, c, ldc)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit.",
]
OUT_OF_MEMORY = [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError(MESSAGES["CPU"])]


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_every_library_that_ran_out_of_memory_is_known(message):
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", OTHER_MESSAGES)
def test_other_failures_are_not_taken_for_it(message):
    assert not is_out_of_memory(RuntimeError(message))


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
