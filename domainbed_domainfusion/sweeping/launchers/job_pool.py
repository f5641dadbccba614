"""A sweep's jobs on this machine: one queue, a place for each job that may run at a time, and one progress bar."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from tqdm import tqdm

from ...errors import InputError
from ...resuming import switch
from .job_memory import GIB, MEMORY_VARIABLE, JobMemory, taken_bytes
from .sweep_job import SweepJob

BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} jobs [{elapsed}<{remaining}{postfix}]"
POLL_SECONDS = 0.2
MEMORY_SECONDS = 2.0  # between two looks at what a job takes
KILLED = (-9, 128 + 9)  # exit statuses after SIGKILL: of a process, and of a shell whose child was killed

Environment = dict[str, str]


class JobPool:
    """Runs shell commands in their order, one at each place at a time.

    places: the environment of a job at that place; as many jobs run at a time as there are places. A job is not started
    beside others if the free memory does not hold it (`job_memory`). It then waits, and those behind it wait too.
    The jobs have checkpoints (`resuming`), unless DOMAINFUSION_RESUME is off.
    """

    def __init__(self, commands: Sequence[str], places: Sequence[Environment]):
        self.jobs = [LocalJob(command) for command in commands]
        self.waiting = list(self.jobs)
        self.running: list[LocalJob] = []
        self.free_places = [{**place, **switch.environment()} for place in places]
        self.memory = JobMemory()
        self._told: set[LocalJob] = set()

    def run(self) -> None:
        """Run all jobs to their end. Each prints to its own out.txt and err.txt; the bar shows the progress of all.

        If jobs failed, this raises InputError after all have ended, with the last line of each failed job's err.txt.
        """
        interval = 0.5 if sys.stderr.isatty() else 30
        try:
            with tqdm(total=len(self.jobs), bar_format=BAR, mininterval=interval, maxinterval=interval) as bar:
                while self.waiting or self.running:
                    self._start_jobs()
                    time.sleep(POLL_SECONDS)
                    self._look()
                    bar.set_postfix_str(" | ".join(job.status() for job in self.running), refresh=False)
                    bar.update(sum(job.progress() for job in self.jobs) - bar.n)
                bar.refresh()
        finally:
            for job in self.running:
                job.stop()
        report_failures([(job, job.reason()) for job in self.jobs if job.started.returncode != 0], len(self.jobs))

    def _start_jobs(self) -> None:
        while self.waiting and self.free_places and self._fits(self.waiting[0]):
            job = self.waiting.pop(0)
            job.start(self.free_places.pop(0))
            self.running.append(job)

    def _fits(self, job: "LocalJob") -> bool:
        """Whether the job may start now. Alone it always may: whether it fits is then for the system to say."""
        if not self.running or self.memory.fits(job.options, [(each.options, each.taken) for each in self.running]):
            return True
        if job not in self._told:
            self._told.add(job)
            expected = self.memory.expected(job.options) / GIB
            tqdm.write(
                f"{job} waits for memory: a job of its kind is expected to take {expected:.1f} GB. "
                f"{MEMORY_VARIABLE} says how much it is, if you know better.",
                file=sys.stderr,
            )
        return False

    def _look(self) -> None:
        for job in self.running:
            if job.look():
                self.memory.seen(job.options, job.peak, began=job.step() >= 0)
        for job in [job for job in self.running if job.poll() is not None]:
            job.close()
            self.running.remove(job)
            self.free_places.append(job.place)


class LocalJob(SweepJob):
    """A job that runs, has run or will run on this machine."""

    place: Environment
    taken = 0  # bytes, when it was last looked at
    peak = 0  # bytes

    def __init__(self, command: str):
        super().__init__(command)
        self._process: subprocess.Popen | None = None
        self._log: IO[bytes] | None = None  # stderr of the shell and the interpreter, while it runs
        self._printed = ""  # the same as text, when it has ended
        self._looked_at = 0.0

    def start(self, place: Environment) -> None:
        self.place = place
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self.command,
            shell=True,
            env=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )

    @property
    def started(self) -> subprocess.Popen:
        """The process of a job that `start` has started."""
        assert self._process is not None, f"{self} has not been started"
        return self._process

    def poll(self) -> int | None:
        return self.started.poll()

    def look(self) -> bool:
        """Measure the memory that the job takes, if its turn has come. Returns whether it was measured."""
        if time.monotonic() - self._looked_at < MEMORY_SECONDS or self.poll() is not None:
            return False
        self._looked_at = time.monotonic()
        self.taken = taken_bytes(self.started.pid)
        self.peak = max(self.peak, self.taken)
        return True

    def stop(self) -> None:
        if self.poll() is None:
            self.started.terminate()
            self.started.wait()
        self.close()

    def close(self) -> None:
        """Keep what the ended job's process printed, and let go of the file."""
        if self._log is not None:
            self._log.seek(0)
            self._printed = self._log.read().decode(errors="replace")
            self._log.close()
            self._log = None

    def progress(self) -> float:
        """The finished share of the job, in [0, 1]."""
        if self._process is None:
            return 0.0
        return 1.0 if self.poll() is not None else self.share()

    def reason(self) -> str:
        """Why the job failed, in one line. A job that the system killed wrote no reason, and gets the remedy."""
        if self.started.returncode in KILLED:
            return (
                "it was killed, as the system does when the memory is used up: say what a job takes, for example "
                f"{MEMORY_VARIABLE}=16G, or run fewer at a time, for example DOMAINFUSION_JOBS=1"
            )
        return self.last_error(otherwise=self._printed)


def report_failures(failed: Sequence[tuple[SweepJob, str]], jobs: int) -> None:
    """Raise InputError if jobs failed. failed: each failed job and why; jobs: the number of all."""
    if not failed:
        return
    named = "\n".join(
        f"  {job} in {job.folder if job.folder is not None else 'no folder'}: {reason}" for job, reason in failed
    )
    raise InputError(
        f"{len(failed)} of {jobs} jobs failed; mend the cause and launch again, which continues them "
        f"(delete_incomplete removes them):\n{named}"
    )
