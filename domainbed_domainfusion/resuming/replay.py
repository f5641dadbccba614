"""The part of a run before its checkpoint, made again without computing: the journal's values, draws and checks."""

import zlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..errors import InputError
from . import generators, values

SAMPLED = 1024  # values of a minibatch's images that are compared


class Replay:
    """The journal's records up to a checkpoint, in their order.

    Every record has the change that the call made to the random generators. So the loaders, which draw from them,
    deliver what they delivered then. `update` compares the minibatch and the generators with the record. It raises
    InputError if they differ: the images, the libraries or the number of loader workers have changed.
    """

    def __init__(self, folder: str, records: Iterable[dict[str, Any]]):
        self._folder, self._records = folder, deque(records)
        self.seconds: list[float] = []  # of each update since the last row

    def update(self, minibatches: Any, unlabeled: Any) -> dict[str, Any]:
        """What `update` returned at this step."""
        record = self._next("update")
        before = generators.state()
        if record["before"] != generators.fingerprint(before) or record["data"] != sample(minibatches, unlabeled):
            raise self.refusal(f"step {record['update']} gets another minibatch or other random numbers than then")
        self._draw(before, record["change"])
        self.seconds.append(record["seconds"])
        return values.decode(record["values"], values.inlined)

    def accuracy(self, network: Any, loader: Iterable) -> float:
        """What the evaluation returned. The loader is read, because its workers and its sampler draw."""
        record = self._next("accuracy")
        before = generators.state()
        network.eval()
        for _ in loader:
            pass
        network.train()
        self.seconds = []
        self._draw(before, record["change"])
        return values.decode(record["accuracy"], values.inlined)

    def refusal(self, reason: str) -> InputError:
        return InputError(
            f"The checkpoints in {self._folder} cannot be continued: {reason}. Put back what the run began with "
            "(images, library versions, environment variables), or delete that folder to train from the beginning."
        )

    def _next(self, kind: str) -> dict[str, Any]:
        if not self._records or kind not in self._records[0]:
            raise self.refusal("the order of steps and evaluations is another one (as with another --checkpoint_freq)")
        return self._records.popleft()

    @staticmethod
    def _draw(before: bytes, change: str | None) -> None:
        if change is not None or generators.state() != before:
            generators.set_state(generators.applied(before, change))


def update_record(
    number: int, result: dict, before: bytes, minibatches: Any, unlabeled: Any, seconds: float
) -> dict[str, Any]:
    """The record of an update that has just returned `result`.

    before: the generators' states when it was called. seconds: of the step, with the loading of its minibatches.
    """
    return {
        "update": number,
        "seconds": seconds,
        "values": values.encode(result, values.inline),
        "before": generators.fingerprint(before),
        "change": generators.difference(before, generators.state()),
        "data": sample(minibatches, unlabeled),
    }


def accuracy_record(result: float, before: bytes) -> dict[str, Any]:
    """The record of an evaluation that has just returned `result`."""
    return {
        "accuracy": values.encode(result, values.inline),
        "change": generators.difference(before, generators.state()),
    }


def sample(minibatches: Any, unlabeled: Any) -> int:
    """A CRC-32 of some pixels and of all labels of a step's minibatches."""
    checksum = 0
    for part in [*(each for pair in minibatches for each in pair), *(unlabeled or ())]:
        if isinstance(part, Tensor):
            some = part.reshape(-1)[:: max(1, part.numel() // SAMPLED)]
            checksum = zlib.crc32(values.tensor_bytes(some), checksum)
    return checksum
