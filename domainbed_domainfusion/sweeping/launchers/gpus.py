"""The launcher `gpus`, for one machine with GPUs: one job on each GPU at a time."""

import os

import torch

from ...errors import InputError
from ..host_scripts import script_environment
from .cores import requested_jobs, threads_each
from .job_pool import JobPool

VISIBLE = "CUDA_VISIBLE_DEVICES"


def launch(commands: list[str]) -> None:
    """Run shell commands in one queue: as soon as a GPU is free, the next job starts on it.

    CUDA_VISIBLE_DEVICES says which GPUs are used; without it, all are. The jobs divide the CPU's cores as threads. A
    job is not started beside others if the machine's free memory does not hold it. DOMAINFUSION_JOBS lowers the number
    of jobs at a time.

    Raises InputError if there is no GPU. If jobs failed it does so after all have ended, with the last line of each
    failed job's err.txt.
    """
    if commands:
        JobPool(commands, gpus_conditions(len(commands))).run()


def gpus_conditions(jobs: int) -> list[dict[str, str]]:
    """The environment variables of each of the jobs that run at a time. Raises InputError if there is no GPU."""
    gpus = visible_gpus()
    if not gpus:
        named = os.environ.get(VISIBLE)
        hidden = f" that {VISIBLE}={named!r} leaves visible" if named is not None else ""
        raise InputError(
            f"The launcher gpus found no GPU{hidden}: correct that, or launch with --command_launcher cores."
        )
    at_a_time = max(1, min(jobs, len(gpus), requested_jobs() or jobs))
    environment = script_environment(threads=threads_each(at_a_time))
    return [{**environment, VISIBLE: gpu} for gpu in gpus[:at_a_time]]


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them; empty if there is none."""
    named, there = os.environ.get(VISIBLE), torch.cuda.device_count()
    if named is None:
        return [str(i) for i in range(there)]
    return [gpu.strip() for gpu in named.split(",") if gpu.strip()][:there]
