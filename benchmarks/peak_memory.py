"""Extra memory of a method: the peak of allocated tensor bytes, minus the bytes allocated before (the weights).

On a GPU this is the peak of torch's allocator. On a CPU it is summed from the allocator's events in torch's profiler.
They include temporary tensors inside an operator, but not oneDNN's own scratch space. The process's resident set is not
used, because it includes freed memory that the C library has not returned.
"""

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from domainbed_domainfusion.diffusion.memory import peak
from domainbed_domainfusion.diffusion.micro_batches import is_out_of_memory


def extra_peak(method: Callable[[], object], device: str) -> int:
    """The method's extra memory in bytes, including its result."""
    gc.collect()
    if torch.device(device).type == "cuda":
        return peak(method, torch.device(device))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        method()
    return _highest(_allocations(profiler))


def largest_batch(run: Callable[[int], object], limit_bytes: int, device: str, most: int = 1024) -> int:
    """The largest batch size, at most `most`, for which `run` does not exceed the limit. 0 if none fits.

    For a GPU only. torch's allocator gets the limit for the whole process, so a larger batch runs out of memory.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    if limit_bytes < total:
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total, device)
    try:
        return largest(lambda size: _fits(run, size), most)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest size in [1, most] that fits, by doubling and bisection. 0 if none fits. `fits` must be monotone."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(run: Callable[[int], object], size: int) -> bool:
    try:
        run(size)
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return False


def _allocations(profiler: profile) -> list[int]:
    """Bytes allocated (positive) and freed (negative) on the CPU, ordered by time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    on_cpu = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    return [event["args"]["Bytes"] for event in sorted(on_cpu, key=lambda event: event["ts"])]


def _highest(changes: list[int]) -> int:
    highest = level = 0
    for change in changes:
        level += change
        highest = max(highest, level)
    return highest
