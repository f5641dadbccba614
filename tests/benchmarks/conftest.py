"""The host's context as it was, and whether the reference for forward mode is to be had."""

import pytest
import torch

from domainbed_domainfusion.hosting import context


@pytest.fixture(autouse=True)
def no_run_left_behind():
    yield
    context._current = context.TrainingContext()


@pytest.fixture
def stock_jvp() -> None:
    """Skips where torch.func.jvp, a reference and not ours, cannot do a group norm with the channels innermost."""
    x = torch.ones(2, 4, 2, 3).to(memory_format=torch.channels_last)
    try:
        torch.func.jvp(lambda x: torch.nn.functional.group_norm(x, 2), (x,), (x,))
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__}'s own torch.func.jvp has no channels_last group norm: {error}")
