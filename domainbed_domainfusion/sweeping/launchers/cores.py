"""The launcher `cores`, for a machine without a GPU: one job per core."""

import os

import joblib

from ...errors import InputError
from ..host_scripts import script_environment
from .job_pool import JobPool

JOBS_VARIABLE = "DOMAINFUSION_JOBS"


def launch(commands: list[str]) -> None:
    """Run shell commands in parallel, one per core, each with its share of the threads.

    Two parallel single-threaded trainings of a small model are faster than two successive ones with two threads.
    As many jobs run at a time as there are cores, fewer if the memory does not hold them. The environment variable
    DOMAINFUSION_JOBS lowers that number too.

    If jobs failed, this raises InputError after all have ended, with the last line of each failed job's err.txt.
    """
    if commands:
        at_a_time, environment = cores_conditions(len(commands))
        JobPool(commands, [environment] * at_a_time).run()


def cores_conditions(jobs: int) -> tuple[int, dict[str, str]]:
    """(jobs at a time, environment variables of each) for `jobs` jobs. The jobs share the cores as threads."""
    at_a_time = max(1, min(jobs_at_a_time(), jobs))
    return at_a_time, script_environment(threads=threads_each(at_a_time))


def jobs_at_a_time() -> int:
    """The most jobs that run at a time: the number of cores, or DOMAINFUSION_JOBS if that is smaller.

    Raises InputError if DOMAINFUSION_JOBS is not a whole number of at least 1.
    """
    requested = requested_jobs()
    return cores() if requested is None else min(requested, cores())


def requested_jobs() -> int | None:
    """DOMAINFUSION_JOBS; None if it is not set. Raises InputError if it is not a whole number of at least 1."""
    requested = os.environ.get(JOBS_VARIABLE)
    if requested is None:
        return None
    if not requested.isdecimal() or int(requested) < 1:
        raise InputError(
            f"{JOBS_VARIABLE}={requested!r} is not a number of jobs: set it to 1 or more, or unset it to run "
            "as many as fit."
        )
    return int(requested)


def threads_each(jobs: int) -> int:
    """The threads of each of so many jobs that run at a time."""
    return max(1, cores() // jobs)


def cores() -> int:
    """The cores that this process may use. joblib respects affinity and container quotas, os.cpu_count does not."""
    return joblib.cpu_count()
