"""Data loaders with one endless stream of batches each. Their worker processes therefore live as long as the run.

A dataset is a torch dataset with a length.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, WeightedRandomSampler


class _Endless:
    """Draws from a sampler again and again."""

    def __init__(self, sampler: Iterable[list[int]]):
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield from self.sampler


def _stream(dataset: Any, batches: BatchSampler, num_workers: int) -> Iterator:
    return iter(DataLoader(dataset, num_workers=num_workers, batch_sampler=_Endless(batches)))


class InfiniteDataLoader:
    """Endless batches, drawn with replacement, uniformly or by weights (N,). It has no length."""

    def __init__(self, dataset: Any, weights: torch.Tensor | None, batch_size: int, num_workers: int):
        sampler: Sampler[int]
        if weights is None:
            sampler = RandomSampler(dataset, replacement=True)
        else:
            values: Any = weights  # a tensor is accepted, though torch's annotation says a sequence
            sampler = WeightedRandomSampler(values, num_samples=batch_size, replacement=True)
        self._batches = _stream(dataset, BatchSampler(sampler, batch_size, drop_last=True), num_workers)

    def __iter__(self) -> Iterator:
        while True:
            yield next(self._batches)

    def __len__(self) -> int:
        raise ValueError("an InfiniteDataLoader has no length")


class FastDataLoader:
    """Every example once per pass, in random order; the last batch may be smaller."""

    def __init__(self, dataset: Any, batch_size: int, num_workers: int):
        batches = BatchSampler(RandomSampler(dataset, replacement=False), batch_size, drop_last=False)
        self._length = len(batches)
        self._batches = _stream(dataset, batches, num_workers)

    def __iter__(self) -> Iterator:
        for _ in range(self._length):
            yield next(self._batches)

    def __len__(self) -> int:
        return self._length
