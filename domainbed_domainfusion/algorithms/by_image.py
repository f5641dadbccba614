"""What algorithms share that ask the diffusion model about each image of an evaluation: keys, caches, progress.

The host evaluates the same images at every checkpoint. What does not depend on the classifier is kept from one
evaluation to the next.
"""

import hashlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..hosting import context


def digests(x: Tensor) -> list[str]:
    """A key for each image of x (B, C, H, W): the SHA-256 of its pixels."""
    return [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in x.cpu()]


class ImageCache:
    """One tensor for each image, on the CPU, up to `limit` bytes. Later images are computed again each time.

    Copies and pickles are empty.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._rows: dict[str, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, keys: list[str], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """One row for each key, stacked. compute: places among `keys`, one for each new image → their rows."""
        known = {key: self._rows[key] for key in keys if key in self._rows}
        new = {key: place for place, key in enumerate(keys) if key not in known}
        if new:
            for key, row in zip(new, compute(list(new.values())).cpu()):
                known[key] = row
                self._keep(key, row)
        return torch.stack([known[key] for key in keys])

    def _keep(self, key: str, row: Tensor) -> None:
        size = row.numel() * row.element_size()
        if self._bytes + size <= self.limit:
            self._rows[key] = row.clone()  # a view would keep the whole batch
            self._bytes += size

    def __getstate__(self) -> dict:
        return {"limit": self.limit, "_rows": {}, "_bytes": 0}


class EvaluationBar:
    """One progress bar per evaluation, on the terminal's stderr: the host copies sys.stderr into err.txt."""

    def __init__(self, name: str):
        self.name = name
        self._bar: tqdm | None = None

    def update(self, images: int) -> None:
        """So many more images are done."""
        total = sum(context.current().evaluation_lengths)
        if self._bar is None or self._bar.n >= total:
            self._bar = tqdm(
                total=total or None, desc=self.name, unit="image", leave=False, file=sys.__stderr__, disable=None
            )
        self._bar.update(images)

    def __getstate__(self) -> dict:
        return {"name": self.name, "_bar": None}
