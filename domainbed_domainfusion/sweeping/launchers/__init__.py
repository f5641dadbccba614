"""The launchers that `register` adds to the host's: one file each.

A launcher takes the shell commands of a sweep's jobs. `slurm` returns when all are in the cluster's queue, the others
when all have ended. `job_pool` runs jobs on this machine for `cores` and `gpus`. `job_memory` tells what a job takes.
"""

from collections.abc import Callable

from . import cores, gpus, ray_tasks, slurm

#: Their jobs have checkpoints without being asked; see `resuming.switch`.
LAUNCHERS: dict[str, Callable[[list[str]], None]] = {
    "cores": cores.launch,
    "gpus": gpus.launch,
    "ray": ray_tasks.launch,
    "slurm": slurm.launch,
}
