"""Seeds of identities, and the global random generators that a block leaves as it found them."""

import random

import numpy as np
import pytest
import torch

from domainbed_domainfusion.seeding import preserved_rng


class FakeCuda:
    """The generators of two CUDA devices; a state is a count of draws."""

    def __init__(self, monkeypatch) -> None:
        self.states = [torch.tensor([3]), torch.tensor([5])]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state.clone() for state in self.states])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: setattr(self, "states", list(states)))

    def draw(self) -> None:
        for state in self.states:
            state += 1


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def draw(cuda: FakeCuda) -> list:
    """One draw from every global generator, and CUDA's states before its own."""
    before = [state.item() for state in cuda.states]
    cuda.draw()
    return [random.random(), np.random.rand(), torch.rand(()).item(), *before]


def test_every_global_generator_goes_on_where_it_was(cuda):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    expected = [draw(cuda), draw(cuda)]
    cuda.states = [torch.tensor([3]), torch.tensor([5])]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    assert draw(cuda) == expected[0]
    with preserved_rng():
        draw(cuda), draw(cuda)
    assert draw(cuda) == expected[1]


def test_an_error_inside_restores_them_too(cuda):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(ValueError), preserved_rng():
        draw(cuda)
        raise ValueError
    assert torch.equal(torch.rand(1), expected) and [state.item() for state in cuda.states] == [3, 5]


def test_without_a_gpu_cuda_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cuda, "get_rng_state_all")
    torch.manual_seed(0)
    with preserved_rng():
        drawn = torch.rand(1)
    assert torch.equal(torch.rand(1), drawn)
