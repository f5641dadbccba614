"""SWAD (Cha et al., NeurIPS 2021): the mean of the weights over a valley of the validation loss.

The loss is that of the training domains' out-splits, which DomainBed's training-domain validation selects by. So SWAD
uses the validation split, for the choice of steps only: no gradient comes from it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..seeding import preserved_rng
from . import context

Weights = dict[str, Tensor]


@dataclass
class Segment:
    """The mean of the weights over some steps."""

    mean: Weights = field(default_factory=dict)
    steps: int = 0

    @torch.no_grad()
    def add(self, weights: Weights, steps: int = 1) -> None:
        """Take in weights that are the mean over `steps` steps; tensors that are new begin with themselves."""
        self.steps += steps
        for name, weight in weights.items():
            mean = self.mean.get(name)
            if mean is None or mean.shape != weight.shape:
                self.mean[name] = weight.detach().clone()
            else:
                mean.lerp_(weight.to(mean.device), steps / self.steps)


class LossValley:
    """The paper's Algorithm 1, with one evaluation at each of the host's checkpoints.

    The valley begins at the first evaluation whose loss the next `converge` − 1 evaluations do not fall below. It ends
    before the first `tolerance` evaluations in a row whose losses all exceed `ratio` times the mean loss of the first
    `converge`. Every step of the valley counts equally. `values` is the answer as if the run ended now: empty before
    the valley is found, and the mean up to now while it goes on.

    The authors' code averages means of segments, and counts some of them twice; this is the paper's mean.
    """

    def __init__(self, converge: int, tolerance: int, ratio: float):
        self.converge, self.tolerance, self.ratio = converge, tolerance, ratio
        self.open = Segment()  # the steps since the last evaluation
        #: (mean, steps, loss) of the closed segments of which the next losses will decide. Plain data, and not
        #: `Segment`s, because checkpoints of a run hold only plain data that an attribute gets while it trains.
        self.waiting: deque[tuple[Weights, int, float]] = deque()
        self.valley = Segment()
        self.level: float | None = None  # the loss that ends the valley; None before it begins
        self.ended = False
        self.values: Weights = {}

    def add(self, weights: Weights) -> None:
        """Take in the weights after one more step."""
        if not self.ended:
            self.open.add(weights)

    def close(self, loss: float) -> None:
        """End the segment with the loss of the weights at its last step."""
        if self.ended:
            return
        self.waiting.append((self.open.mean, self.open.steps, loss))
        self.open = Segment()
        losses = [each for _, _, each in self.waiting]
        if self.level is not None:
            last = losses[-self.tolerance :]
            self.ended = len(last) == self.tolerance and min(last) > self.level
        elif len(losses) < self.converge:
            return
        elif losses[0] > min(losses):
            self.waiting.popleft()
            return
        else:
            self.level = self.ratio * sum(losses) / len(losses)
        while len(self.waiting) > self.tolerance:  # later losses cannot end the valley before these
            mean, steps, _ = self.waiting.popleft()
            self.valley.add(mean, steps)
        so_far = Segment()
        parts = [(self.valley.mean, self.valley.steps)] if self.valley.steps else []
        for mean, steps in parts + ([] if self.ended else [(mean, steps) for mean, steps, _ in self.waiting]):
            so_far.add(mean, steps)
        self.values = so_far.mean


def is_checkpoint(step: int) -> bool:
    """Whether the host evaluates after this step, counted from 0."""
    run = context.current()
    frequency = context.train_arguments().checkpoint_freq or getattr(run.dataset, "CHECKPOINT_FREQ", None)
    return frequency is not None and (step % frequency == 0 or step == run.total_steps - 1)


def read_validation_splits() -> None:
    """Read what `validation_loss` reads, without computing."""
    with preserved_rng():
        for loader in context.current().validation_loaders:
            for _ in loader:
                pass


@torch.no_grad()
def validation_loss(algorithm: Any) -> float | None:
    """Mean cross-entropy over the out-splits of the training domains; None outside the host's train script.

    The algorithm is in eval mode meanwhile. The loaders are the host's own: one pass more than the host's.
    """
    loaders = context.current().validation_loaders
    if not loaders:
        return None
    device = next(algorithm.parameters()).device
    total, images = 0.0, 0
    algorithm.eval()
    with preserved_rng():
        for loader in loaders:
            for x, y in loader:
                total += F.cross_entropy(algorithm.predict(x.to(device)), y.to(device), reduction="sum").item()
                images += len(y)
    algorithm.train()
    return total / images
