"""Seeds as a function of identity (who draws, and for what), never of the order of the draws."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_of(*identity: Any) -> int:
    """A 63-bit seed from plain values, e.g. `seed_of(run_seed, "candidate", environment, index, round, j)`.

    The same identity gives the same seed in every process and on every machine.
    """
    digest = hashlib.sha256(json.dumps(identity).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*identity: Any) -> torch.Generator:
    """A CPU `torch.Generator` seeded by `seed_of(*identity)`; draw on the CPU so that devices agree."""
    return torch.Generator().manual_seed(seed_of(*identity))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put back the states of the global random generators when the block ends, also after an error.

    The generators are Python's `random`, numpy's legacy one, torch's CPU generator and those of all CUDA devices. A
    library that draws in the block, for example to initialise a network, then does not change the run's later draws.
    """
    python, legacy_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
