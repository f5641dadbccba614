"""A training job as Slurm runs it: a command that is interrupted with a checkpoint, and queues again."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from ...resuming import switch
from .. import slurm_records
from ..host_scripts import script_environment

POLL_SECONDS = 0.2
#: A process that a stop signal has ended has one of these statuses; see docs/resume.md.
STOPPED_BY_SIGNAL = (128 + signal.SIGTERM, 128 + signal.SIGUSR2, -signal.SIGTERM, -signal.SIGUSR2)
SPARE_SECONDS = 20  # of the time before the limit, for queueing again
WAIT_FOR_SLURM_SECONDS = 600.0


class TrainingCommand:
    """What submitit calls in the job: the shell command of one training job of the host.

    submitit calls `checkpoint` when Slurm announces the time limit or preemption, and puts the job into the queue
    again with what it returns. When the job has its turn again, its command continues from the checkpoint.

    command: a simple shell command, with neither pipes nor `&&`. job_folder: its --output_dir, an absolute path.
    signal_seconds: how long before the end the signal comes.
    """

    def __init__(self, command: str, job_folder: Path, signal_seconds: int):
        self.command, self.job_folder, self.signal_seconds = command, job_folder, signal_seconds
        self._process: subprocess.Popen | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}

    def __call__(self) -> None:
        """Run the command to its end. Raises RuntimeError if it fails, which Slurm shows as the job's failure."""
        self._record(slurm_records.STARTED, node=os.uname().nodename)
        environment = {**script_environment(), **switch.environment()}
        # `exec`: without it the shell would get the signals that are meant for the training.
        command = ["/bin/sh", "-c", f"exec {self.command}"]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        # Not `wait`: it holds a lock that a signal handler must not need.
        while self._process.poll() is None:
            time.sleep(POLL_SECONDS)
        status = self._process.returncode
        if status == 0:
            self._record(slurm_records.ENDED)
            return
        if status in STOPPED_BY_SIGNAL:
            # Slurm itself has sent SIGTERM to all processes. It will end this one too, and queue the job again if it
            # was preempted. To fail before that would take the job out of the queue.
            self._record(slurm_records.INTERRUPTED)
            time.sleep(WAIT_FOR_SLURM_SECONDS)
        self._record(slurm_records.FAILED, status=status)
        raise RuntimeError(f"{self.command} ended with status {status}; {self.job_folder / 'err.txt'} may say why")

    def checkpoint(self) -> Any:
        """End the training after its present step, with a checkpoint, and return the job that continues it.

        A step that takes longer, as one with a round of generation may, is killed: the job then continues from its
        last checkpoint, and the images of the round that are saved are not made again.
        """
        from submitit.helpers import DelayedSubmission

        process = self._process
        if process is not None:
            deadline = time.monotonic() + max(1, self.signal_seconds - SPARE_SECONDS)
            _send(process.pid, signal.SIGUSR2)
            while not _has_ended(process.pid):
                if time.monotonic() > deadline:
                    _send(process.pid, signal.SIGKILL)
                    deadline = float("inf")
                time.sleep(POLL_SECONDS)
        self._record(slurm_records.INTERRUPTED)
        return DelayedSubmission(self)

    def _record(self, event: str, **details: object) -> None:
        slurm_records.append(self.job_folder, event, _own_id(), **details)


def _own_id() -> str:
    """This job's id in Slurm, as squeue prints it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "?")


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended and been waited for
        os.kill(process, number)


def _has_ended(process: int) -> bool:
    """Whether a child process has ended. It stays to be waited for."""
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
