"""Seeds as a function of identity (who is drawing, for what), never of the order in which things are drawn."""

import hashlib
import json

import torch


def seed_of(*identity) -> int:
    """A 63-bit seed from plain values, e.g. `seed_of(run_seed, "candidate", environment, index, round, j)`.

    The same identity gives the same seed in every process and on every machine.
    """
    digest = hashlib.sha256(json.dumps(identity).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*identity) -> torch.Generator:
    """A CPU `torch.Generator` seeded by `seed_of(*identity)`; draw on the CPU so that devices agree."""
    return torch.Generator().manual_seed(seed_of(*identity))
