"""Seconds of methods that run in turns (A B C A B C …), so that other load on the machine affects all of them."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm


class Spread(NamedTuple):
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))

    def scaled(self, factor: float) -> "Spread":
        """The spread of the values times `factor`, which must be positive."""
        return Spread(*(factor * value for value in self))


def interleaved(
    methods: dict[str, Callable[[], object]], repeats: int, device: str, title: str = "timing", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each method in each of `repeats` rounds. A round runs every method once, in the given order.

    `warm_up` rounds run first and are not counted. On a GPU the time includes the GPU's work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with tqdm(total=(warm_up + repeats) * len(methods), desc=title, file=sys.stderr, disable=None) as progress:
        for number in range(-warm_up, repeats):
            for name, method in methods.items():
                progress.set_postfix_str(name)
                took = seconds_of(method, device)
                if number >= 0:
                    seconds[name].append(took)
                progress.update()
    return seconds


def seconds_of(method: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    method()
    synchronize(device)
    return time.perf_counter() - start


def paired_ratio(numerators: list[float], denominators: list[float]) -> Spread:
    """The ratio of two methods' seconds, formed in each round, then median and quartiles over the rounds."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
