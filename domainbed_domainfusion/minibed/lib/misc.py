"""Seeds, splits, accuracy and printing (the module is named after its counterpart in DomainBed)."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def seed_hash(*identity: Any) -> int:
    """A seed in [0, 2**31) from the printed form of the tuple of arguments: its MD5 modulo 2**31."""
    digest = hashlib.md5(str(identity).encode("utf-8")).digest()
    return int.from_bytes(digest, "big") % 2**31


class SplitDataset(Dataset):
    """The examples `keys` of `underlying_dataset`, in that order."""

    def __init__(self, underlying_dataset: Dataset, keys: Sequence[int]):
        self.underlying_dataset = underlying_dataset
        self.keys = keys

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return self.underlying_dataset[self.keys[position]]

    def __len__(self) -> int:
        return len(self.keys)


def split_dataset(dataset: Any, n: int, seed: int = 0) -> tuple[SplitDataset, SplitDataset]:
    """Shuffle the indices with `RandomState(seed)`; the first `n` are the first split, the rest the second.

    dataset: a torch dataset with a length.
    """
    if n > len(dataset):
        raise ValueError(f"cannot take {n} of {len(dataset)} examples")
    order = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(order)
    return SplitDataset(dataset, order[:n]), SplitDataset(dataset, order[n:])


def make_weights_for_balanced_classes(dataset: Any) -> torch.Tensor:
    """(N,) sampling weights that sum to 1 and give every class that occurs the same share."""
    labels = [int(label) for _, label in dataset]
    counts = Counter(labels)
    return torch.tensor([1 / (counts[label] * len(counts)) for label in labels])


def accuracy(
    network: Any, loader: Iterable[tuple[torch.Tensor, torch.Tensor]], weights: torch.Tensor | None, device: str
) -> float:
    """The accuracy in [0, 1] on the loader's examples, weighted by `weights` (N,).

    network: a module whose `predict(x)` gives logits (B, classes). It runs in eval mode and is set to train mode
    afterwards.
    """
    correct, total, seen = 0.0, 0.0, 0
    network.eval()
    with torch.no_grad():
        for x, y in loader:
            hits = network.predict(x.to(device)).argmax(1).eq(y.to(device)).float().cpu()
            share = torch.ones(len(x)) if weights is None else weights[seen : seen + len(x)]
            seen += len(x)
            correct += (hits * share).sum().item()
            total += share.sum().item()
    network.train()
    return correct / total


def print_row(row: Sequence[Any], colwidth: int = 10, latex: bool = False) -> None:
    """Print one table row: cells padded and cut to `colwidth` characters, floating-point numbers with ten decimals."""
    cells: list[str] = []
    for value in row:
        text = f"{value:.10f}" if isinstance(value, (float, np.floating)) else str(value)
        cells.append(text.ljust(colwidth)[:colwidth])
    print((" & " if latex else "  ").join(cells), "\\\\" if latex else "")


class Tee:
    """A text stream that writes to the current standard output and to a file, and flushes both after each write."""

    def __init__(self, path: str, mode: str = "a"):
        self.stdout = sys.stdout
        self.file = open(path, mode)

    def write(self, message: str) -> None:
        self.stdout.write(message)
        self.file.write(message)
        self.flush()

    def flush(self) -> None:
        self.stdout.flush()
        self.file.flush()
