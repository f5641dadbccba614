"""The launchers that `register` adds to the host's: one file each.

A launcher takes the shell commands of a sweep's jobs. `cores` returns when all have ended, and `slurm` when all are in
the cluster's queue.
"""

from collections.abc import Callable

from . import cores, slurm

LAUNCHERS: dict[str, Callable[[list[str]], None]] = {"cores": cores.launch, "slurm": slurm.launch}

#: Launchers whose jobs have checkpoints without being asked; see `resuming.switch`.
RESUMING = ("cores", "slurm")
