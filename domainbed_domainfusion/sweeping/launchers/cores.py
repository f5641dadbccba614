"""The launcher `cores`, for a machine without a GPU: one job per core, and one progress bar for the sweep."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import joblib
from tqdm import tqdm

from ...errors import InputError
from ...resuming import switch
from ..host_scripts import command_options, script_environment

JOBS_VARIABLE = "DOMAINFUSION_JOBS"
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} jobs [{elapsed}<{remaining}{postfix}]"
POLL_SECONDS = 0.2
TAIL_BYTES = 65536
KILLED = (-9, 128 + 9)  # exit statuses after SIGKILL: of a process, and of a shell whose child was killed


def launch(commands: list[str]) -> None:
    """Run shell commands in parallel, one per core, each with its share of the threads.

    Two parallel single-threaded trainings of a small model are faster than two successive ones with two threads.
    As many jobs run at a time as there are cores. The environment variable DOMAINFUSION_JOBS lowers that number, for
    a machine with little memory. Each job prints to its own out.txt and err.txt, and one bar shows the progress of all.
    The jobs have checkpoints (`resuming`), unless DOMAINFUSION_RESUME is off.

    If jobs failed, this raises InputError after all have ended, with the last line of each failed job's err.txt.
    """
    if not commands:
        return
    at_a_time, environment = cores_conditions(len(commands))
    environment.update(switch.environment())
    waiting = [_Job(command) for command in commands]
    jobs = list(waiting)
    running: list[_Job] = []
    interval = 0.5 if sys.stderr.isatty() else 30
    try:
        with tqdm(total=len(jobs), bar_format=BAR, mininterval=interval, maxinterval=interval) as bar:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    running.append(waiting.pop(0))
                    running[-1].start(environment)
                time.sleep(POLL_SECONDS)
                running = [job for job in running if job.poll() is None]
                bar.set_postfix_str(" | ".join(job.status() for job in running), refresh=False)
                bar.update(sum(job.progress() for job in jobs) - bar.n)
            bar.refresh()
    finally:
        for job in running:
            job.stop()
    _report_failures(jobs)


def cores_conditions(jobs: int) -> tuple[int, dict[str, str]]:
    """(jobs at a time, environment variables of each) for `jobs` jobs. The jobs share the cores as threads."""
    at_a_time = max(1, min(jobs_at_a_time(), jobs))
    return at_a_time, script_environment(threads=max(1, _cores() // at_a_time))


def jobs_at_a_time() -> int:
    """The most jobs that run at a time: the number of cores, or DOMAINFUSION_JOBS if that is smaller.

    Raises InputError if DOMAINFUSION_JOBS is not a whole number of at least 1.
    """
    requested = os.environ.get(JOBS_VARIABLE)
    if requested is None:
        return _cores()
    if not requested.isdecimal() or int(requested) < 1:
        raise InputError(
            f"{JOBS_VARIABLE}={requested!r} is not a number of jobs: set it to 1 or more, or unset it to run "
            "one job per core."
        )
    return min(int(requested), _cores())


@dataclass
class _Job:
    """One shell command, its process after the start, and its progress from its results file."""

    command: str
    process: subprocess.Popen | None = None
    log: IO[bytes] | None = None  # stderr of the shell and the interpreter
    options: dict[str, str] = field(init=False)

    def __post_init__(self):
        self.options = command_options(self.command)

    def __str__(self) -> str:
        if "algorithm" not in self.options:
            return self.command
        shown = [self.options[key] for key in ("algorithm", "dataset") if key in self.options]
        return " ".join([*shown, "test_envs", self.options.get("test_envs", "0")])

    def start(self, environment: dict[str, str]) -> None:
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self.command,
            shell=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
        )

    @property
    def started(self) -> subprocess.Popen:
        """The process of a job that `start` has started."""
        assert self.process is not None, f"{self} has not been started"
        return self.process

    def poll(self) -> int | None:
        return self.started.poll()

    def stop(self) -> None:
        if self.poll() is None:
            self.started.terminate()
            self.started.wait()

    def progress(self) -> float:
        """The finished fraction of the job's steps, in [0, 1]."""
        if self.process is None:
            return 0.0
        if self.poll() is not None:
            return 1.0
        steps = int(self.options.get("steps", 0))
        return min(1.0, (self._step() + 1) / steps) if steps else 0.0

    def status(self) -> str:
        step = self._step()
        return f"{self} {f'step {step}' if step >= 0 else 'starting'}"

    def last_error(self) -> str:
        """The last line of err.txt. Or of stderr, if the job ended before it wrote to err.txt.

        A job that the system killed wrote no reason. For it this returns a sentence with the remedy.
        """
        if self.started.returncode in KILLED:
            return (
                "it was killed, as the system does when the memory is used up: run fewer jobs at a time, for "
                f"example {JOBS_VARIABLE}=1"
            )
        err = Path(self.options["output_dir"]) / "err.txt" if "output_dir" in self.options else None
        text = _tail(err) if err is not None and err.is_file() else ""
        if not text.strip() and self.log is not None:
            self.log.seek(0)
            text = self.log.read().decode(errors="replace")
        lines = text.split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no error message")

    def _step(self) -> int:
        """The last step in results.jsonl, or -1 if there is none yet."""
        if "output_dir" not in self.options:
            return -1
        results = Path(self.options["output_dir"]) / "results.jsonl"
        lines = _tail(results).split("\n") if results.is_file() else []
        for line in reversed(lines[:-1]):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue
        return -1


def _report_failures(jobs: list[_Job]) -> None:
    failed = [job for job in jobs if job.started.returncode != 0]
    if failed:
        named = "\n".join(
            f"  {job} in {job.options.get('output_dir', 'no folder')}: {job.last_error()}" for job in failed
        )
        raise InputError(
            f"{len(failed)} of {len(jobs)} jobs failed; mend the cause and launch again, which continues them "
            f"(delete_incomplete removes them):\n{named}"
        )


def _cores() -> int:
    """The cores that this process may use. joblib respects affinity and container quotas, os.cpu_count does not."""
    return joblib.cpu_count()


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
