"""The states of the random generators as bytes, and their differences."""

import random

import numpy as np
import pytest
import torch

from domainbed_domainfusion.resuming import generators
from domainbed_domainfusion.seeding import preserved_rng


def draws() -> list:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()]


def test_the_same_state_draws_the_same():
    with preserved_rng():
        draws()  # an odd number of normal draws leaves one in reserve
        state = generators.state()
        first = draws()
        assert draws() != first
        generators.set_state(state)
        assert generators.state() == state
        assert draws() == first


@pytest.mark.parametrize("count", [0, 1, 700])
def test_a_difference_leads_from_one_state_to_the_next(count):
    with preserved_rng():
        before = generators.state()
        for _ in range(count):
            torch.randperm(3)
        after = generators.state()
    change = generators.difference(before, after)
    assert (change is None) == (count == 0)
    assert generators.applied(before, change) == after


def test_the_difference_of_one_draw_is_short():
    with preserved_rng():
        torch.rand(3)
        before = generators.state()
        torch.rand(3)
        assert len(generators.difference(before, generators.state())) < 200


def test_states_of_another_machine_are_refused():
    with pytest.raises(ValueError, match="not of this machine"):
        generators.set_state(generators.state() + b"0" * 16)
