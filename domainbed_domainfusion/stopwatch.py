"""The seconds that a block of code takes on a device."""

import time

import torch


class Stopwatch:
    """A context manager; `seconds` is the time that its block took, the GPU's work included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = self._now() - self._started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
