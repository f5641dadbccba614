"""An algorithm that was captured after some steps and restored into a new one goes on as the uninterrupted one."""

import copy
import json
from collections import deque

import pytest
import torch

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming.capture import Capture
from domainbed_domainfusion.resuming.restore import Restore

from . import in_process


@pytest.mark.parametrize("name", ["ERM", "SAM", "RandAugment", "AugMix"])
def test_the_hosts_algorithms_go_on_exactly(name):
    assert in_process.differences(*in_process.whole_and_restored(name, steps=4, after=2)) == []


class Everything(host.algorithms.ERM):
    """State in all the places where the host's algorithms keep it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.average = copy.deepcopy(self.network)
        self.register_buffer("count", torch.tensor(0))
        self.history, self.seen, self.recent = [], {}, deque(maxlen=2)
        self.own = _MovingAverage()
        self.pair = (_MovingAverage(), 3)
        self.generator = torch.Generator().manual_seed(5)
        self.function = torch.relu
        self.q = torch.full((3,), 1 / 3)

    def update(self, minibatches, unlabeled=None):
        values = super().update(minibatches, unlabeled)
        self.schedule.step()
        self.count += 1
        with torch.no_grad():
            for mine, other in zip(self.average.parameters(), self.network.parameters()):
                mine.lerp_(other, 0.5)
        self.history.append(values["loss"])
        self.seen[int(self.count)] = torch.rand(2, generator=self.generator)
        self.recent.append(torch.rand(1))
        self.own.add(self.recent[-1])
        self.pair[0].add(self.recent[-1])
        self.q = self.q * torch.rand(3)
        if self.count == 3:  # as IRM and VREx do after their warm-up
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.history[-1])
        if not hasattr(self, "late"):  # as Fish makes its inner network in its first update
            self.late = torch.nn.Linear(2, 2)
        self.late.weight.data += self.q[0]
        return {**values, "sum": float(self.own.value.sum() + self.pair[0].value.sum()), "lr": self._lr()}

    def _lr(self):
        return self.optimizer.param_groups[0]["lr"]


class _MovingAverage:
    def __init__(self):
        self.value, self.values = torch.zeros(1), {}

    def add(self, other):
        self.value = 0.9 * self.value + other
        self.values[len(self.values)] = other.item()


@pytest.mark.parametrize("after", [1, 2])
def test_all_kinds_of_state_go_on_exactly(monkeypatch, after):
    monkeypatch.setattr(host.algorithms, "Everything", Everything, raising=False)
    assert in_process.differences(*in_process.whole_and_restored("Everything", steps=5, after=after)) == []


def test_the_comparison_sees_an_optimizer_that_was_not_restored(monkeypatch):
    monkeypatch.setattr("domainbed_domainfusion.resuming.capture.state_dict_data", lambda value: {})
    assert in_process.differences(*in_process.whole_and_restored("ERM", steps=4, after=2))


def test_what_an_algorithm_does_not_have_yet_is_named(monkeypatch):
    monkeypatch.setattr(host.algorithms, "Everything", Everything, raising=False)
    trained = in_process.build("Everything")
    in_process.train(trained, in_process.minibatches(1))
    capture = Capture(trained)
    new = in_process.build("Everything")
    assert Restore(new, json.loads(json.dumps(capture.tree)), capture.tensors).missing == ["_modules[late]"]


def test_an_optimizer_of_another_kind_is_not_taken():
    algorithm, other = in_process.build("ERM"), in_process.build("ERM")
    other.optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    capture = Capture(algorithm)
    assert Restore(other, capture.tree, capture.tensors).missing == ["optimizer"]


def test_parameters_keep_their_identity():
    """Optimizers refer to the parameters of the algorithm that was built."""
    algorithm = in_process.build("ERM")
    before = [id(each) for each in algorithm.parameters()]
    capture = Capture(algorithm)
    Restore(algorithm, capture.tree, capture.tensors)
    assert [id(each) for each in algorithm.parameters()] == before
