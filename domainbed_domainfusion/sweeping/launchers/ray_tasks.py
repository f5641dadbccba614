"""The launcher `ray`: every job of a sweep is a Ray task, on a cluster or on this machine."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import InputError
from ...files import tail
from ...resuming import job_lock, own_state, switch
from ..host_scripts import script_environment
from .job_memory import GIB, JobMemory
from .job_pool import BAR, report_failures
from .sweep_job import SweepJob

ADDRESS_VARIABLE = "RAY_ADDRESS"
CPUS_VARIABLE = "DOMAINFUSION_JOB_CPUS"
GPUS_VARIABLE = "DOMAINFUSION_JOB_GPUS"
RETRIES = 20  # of a job whose node or worker was lost; it goes on from its checkpoint
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0  # between two looks at all jobs: their rows are read each time
LOCK_SECONDS = 600.0  # how long a job waits for the process that trained it before
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies


@dataclass(frozen=True)
class Share:
    """What one job takes of a node."""

    cpus: int
    gpus: int


def launch(commands: list[str]) -> None:
    """Run the jobs of a sweep as Ray tasks, and wait for all of them.

    RAY_ADDRESS names the cluster; without it Ray starts on this machine and ends with the sweep. Every job gets
    DOMAINFUSION_JOB_GPUS GPUs (by default 1, and 0 in a cluster without), DOMAINFUSION_JOB_CPUS cores (by default its
    part of a node's), and memory as `job_memory` expects it. Ray starts a job where these are free. A job whose node is
    lost starts again on another and goes on from its checkpoint.

    Raises InputError before a job starts if Ray is missing, does not answer, or has no node that is large enough; and
    after all have ended if jobs failed, with the last line of each one's err.txt.
    """
    if not commands:
        return
    with _connected() as ray:
        jobs = [SweepJob(command) for command in commands]
        share, memory = job_share(ray.nodes()), JobMemory()
        needs = [memory.expected(job.options) for job in jobs]
        check_nodes(ray.nodes(), share, max(needs))
        task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RETRIES)(run_job)
        variables = {**_variables(), **switch.environment(), "OMP_NUM_THREADS": str(max(1, share.cpus))}
        tasks = {
            task.options(memory=need, name=str(job)).remote(job.command, os.getcwd(), variables): job
            for job, need in zip(jobs, needs)
        }
        failed = _wait(ray, tasks)
    report_failures(failed, len(jobs))


def job_share(nodes: Sequence[dict[str, Any]]) -> Share:
    """What each job gets, from what the nodes have and from the environment variables.

    Raises InputError if a variable is not a whole number.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [each for each in resources if each.get("GPU", 0) >= 1]
    gpus = _whole_number(GPUS_VARIABLE, lowest=0)
    if gpus is None:
        gpus = 1 if with_gpus else 0
    cpus = _whole_number(CPUS_VARIABLE, lowest=1)
    if cpus is None:
        parts = [int(each.get("CPU", 1) * gpus / each["GPU"]) for each in with_gpus] if gpus else []
        cpus = max(1, min(parts, default=1))
    return Share(cpus, gpus)


def check_nodes(nodes: Sequence[dict[str, Any]], share: Share, memory: int) -> None:
    """Raise InputError if no node is large enough for a job: Ray would wait for one without an end."""
    needed = {"CPU": share.cpus, "GPU": share.gpus, "memory": memory}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(each.get(name, 0) >= number for name, number in needed.items()) for each in alive):
        return
    has = "; ".join(
        f"{each.get('CPU', 0):g} cores, {each.get('GPU', 0):g} GPUs, {each.get('memory', 0) / GIB:.1f} GB"
        for each in alive
    )
    raise InputError(
        f"No node of the Ray cluster can hold a job of {share.cpus} cores, {share.gpus} GPUs and {memory / GIB:.1f} GB "
        f"(nodes: {has or 'none'}): set {CPUS_VARIABLE}, {GPUS_VARIABLE} or DOMAINFUSION_JOB_MEMORY to less, or add a "
        "larger node."
    )


def run_job(command: str, folder: str, variables: dict[str, str]) -> tuple[int, str]:
    """In a Ray worker: run a job's shell command in `folder`; returns its exit status and the end of its stderr.

    The job ends when the worker ends: without that it would go on beside its successor on another node. The successor
    waits until the former process has let go of the job's folder.
    """
    job = SweepJob(command)
    if job.folder is not None:
        _wait_for_lock(Path(folder) / job.folder / own_state.RESUME_FOLDER)
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            cwd=folder,
            env={**script_environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=_end_with_parent,
        )
        try:
            # Not `wait`: Ray cancels a task by an interrupt that does not end a system call.
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
            return process.returncode, tail(Path(log.name))
        finally:  # also when the sweep is interrupted: the job writes its checkpoint
            if process.poll() is None:
                process.terminate()
                process.wait()


def _wait(ray: Any, tasks: dict[Any, SweepJob]) -> list[tuple[SweepJob, str]]:
    """Wait for all tasks behind one progress bar; returns the jobs that failed, and why."""
    failed: list[tuple[SweepJob, str]] = []
    pending = list(tasks)
    interval = 0.5 if sys.stderr.isatty() else 30
    try:
        with tqdm(total=len(tasks), bar_format=BAR, mininterval=interval, maxinterval=interval) as bar:
            while pending:
                ended, pending = ray.wait(pending, num_returns=len(pending), timeout=LOOK_SECONDS)
                failed += [(tasks[each], reason) for each in ended if (reason := _reason(ray, each, tasks[each]))]
                shares = {each: tasks[each].share() for each in pending}
                running = [tasks[each].status() for each in pending if shares[each] > 0]
                bar.set_postfix_str(f"{len(running)} running" if len(running) > 4 else " | ".join(running), False)
                bar.update(len(tasks) - len(pending) + sum(shares.values()) - bar.n)
            bar.refresh()
    except BaseException:
        for each in pending:
            ray.cancel(each)
        ray.wait(pending, num_returns=len(pending), timeout=LOCK_SECONDS)
        raise
    return failed


def _reason(ray: Any, task: Any, job: SweepJob) -> str:
    """Why a task failed, in one line; "" if it did not."""
    try:
        status, log = ray.get(task)
    except ray.exceptions.RayError as error:
        return f"Ray gave it up ({str(error).strip().splitlines()[0]})"
    if status == 0:
        return ""
    return f"it ended with status {status}: {job.last_error(otherwise=log)}"


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Ray, connected to the cluster at RAY_ADDRESS or to one that it starts on this machine."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "The launcher ray needs the package ray: pip install 'domainbed-domainfusion[ray]'."
        ) from error
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"There is no Ray cluster at {ADDRESS_VARIABLE}={address}" if address else "Ray does not start here"
        raise InputError(
            f"{where} ({str(error).strip().splitlines()[0]}): name a running cluster in {ADDRESS_VARIABLE}, or launch "
            "with --command_launcher cores or gpus."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _variables() -> dict[str, str]:
    """The environment variables of this process that a job needs on another node too."""
    kept = ("PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or (name.startswith("DOMAINFUSION_") and not name.startswith("DOMAINFUSION_JOB"))
    }


def _wait_for_lock(folder: Path) -> None:
    """Wait until no process holds the job's lock. After LOCK_SECONDS the job starts, and says what holds it."""
    until = time.monotonic() + LOCK_SECONDS
    while job_lock.is_held(folder) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _whole_number(variable: str, lowest: int) -> int | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < lowest:
        raise InputError(f"{variable}={text!r} is not a whole number of at least {lowest}: correct it, or unset it.")
    return int(text)
