"""`domainfusion sweep status OUT`: what has become of each job of a sweep, from its files, and from Slurm's queue if
the sweep was submitted there.

Nothing is imported of the host and nothing is written, so it can be asked while the sweep runs, also on another
machine that shares the folder.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..files import TAIL_BYTES, last_line, tail
from ..resuming.job_lock import is_held
from ..resuming.own_state import CONTINUED, RESUME_FOLDER
from . import slurm_records

DONE, RUNNING, QUEUED, FAILED = "done", "running", "queued", "failed"
STOPPED, WAITING, UNKNOWN = "stopped", "waiting", "unknown"
#: In the order of the table's columns.
STATES = {
    DONE: "finished",
    RUNNING: "a process trains it now",
    QUEUED: "in Slurm's queue; its turn has not come, or it was interrupted and comes again",
    FAILED: "ended with an error in Slurm",
    STOPPED: "begun, not finished, and no process trains it",
    WAITING: "its turn has not come: the folder is empty",
    UNKNOWN: "begun and not finished, without checkpoints: whether a process trains it cannot be told",
}
SECONDS = 10  # between two looks with --watch
PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "STOPPED")  # Slurm's names
OPEN = (RUNNING, QUEUED, WAITING, UNKNOWN)  # --watch looks until no job is in one of these states


@dataclass(frozen=True)
class JobStatus:
    """One job folder."""

    folder: str
    state: str  # a key of STATES
    algorithm: str = "?"  # "?" until the job has written a result row
    dataset: str = "?"
    test_envs: tuple[int, ...] = ()
    trial: int | None = None
    step: int | None = None  # the last one that is known to have been made
    continued: int = 0  # how many times it was taken up after an interruption
    interrupted: int = 0  # how many times Slurm interrupted it, at the time limit or for another job
    exit_status: int | None = None  # with which a job that has failed in Slurm ended
    last_error: str = ""  # the last line of err.txt, of a job that has stopped or failed; without one, of Slurm's log

    def line(self) -> str:
        """E.g. `running  DomainFusion on PACS, test_envs 3, trial 0: step 4120, continued once`."""
        name = self.folder
        if self.algorithm != "?":
            tests = " ".join(map(str, self.test_envs))
            name = f"{self.algorithm} on {self.dataset}, test_envs {tests}, trial {self.trial}"
        parts = [f"step {self.step}"] if self.step is not None else []
        for what, times in (("interrupted", self.interrupted), ("continued", self.continued)):
            if times:
                parts.append(f"{what} once" if times == 1 else f"{what} {times} times")
        if self.exit_status is not None:
            parts.append(f"ended with status {self.exit_status}")
        if self.last_error:
            parts.append(f"last error: {self.last_error}")
        return f"{self.state:<8} {name}{': ' if parts else ''}{', '.join(parts)}"


def parser() -> argparse.ArgumentParser:
    """The parser of `domainfusion sweep status`."""
    parser = argparse.ArgumentParser(
        prog="domainfusion sweep status",
        epilog=". ".join(f"{state}: {meaning}" for state, meaning in STATES.items()),
    )
    parser.add_argument("output_dir", type=Path, help="the --output_dir of a sweep")
    parser.add_argument("--json", action="store_true", help="one JSON array of all jobs instead of the table")
    parser.add_argument("--watch", action="store_true", help="look again every few seconds until no job runs or waits")
    return parser


def command(words: Sequence[str]) -> int:
    """Run `domainfusion sweep status <words>` and return the exit status."""
    given = parser().parse_args(words)
    return show(given.output_dir, given.json, given.watch)


def status(output_dir: Path) -> list[JobStatus]:
    """The status of each job in a sweep's --output_dir. Raises InputError if there is none.

    If Slurm has to be asked and does not answer, a printed line says so, and the files alone count.
    """
    if not output_dir.is_dir():
        raise InputError(f"No sweep folder at {output_dir}: give the --output_dir of a sweep.")
    folders = sorted(Path(entry.path) for entry in os.scandir(output_dir) if entry.is_dir())
    jobs = [_job(folder) for folder in folders if _is_job(folder)]
    if not jobs:
        raise InputError(f"No job in {output_dir}: a sweep's --output_dir holds one folder per job.")
    if not (output_dir / slurm_records.FOLDER).is_dir():
        return jobs
    events = {job.folder: slurm_records.read(output_dir / job.folder) for job in jobs if job.state != DONE}
    queue: Mapping[str, str] | None = None
    try:
        queue = slurm_records.queue(each[-1]["slurm_job"] for each in events.values() if each)
    except InputError as error:
        print(f"{error} The states below are from the files alone.", file=sys.stderr)
    return [_in_slurm(output_dir, job, events.get(job.folder, []), queue) for job in jobs]


def show(output_dir: Path, as_json: bool = False, watch: bool = False) -> int:
    """Print the status, with `watch` again and again until no job runs or waits. Returns 0."""
    while True:
        jobs = status(output_dir)
        if as_json:
            print(json.dumps([asdict(job) for job in jobs], indent=2))
        else:
            if watch and sys.stdout.isatty():
                print("\033[2J\033[H", end="")  # clear the screen
            print(text(jobs), flush=True)
        if not watch or not any(job.state in OPEN for job in jobs):
            return 0
        time.sleep(SECONDS)


def text(jobs: Sequence[JobStatus]) -> str:
    """A table of the numbers of jobs, then a line for each job that was begun and is not done."""
    counts = Counter((job.dataset, job.algorithm, job.state) for job in jobs)
    states = [state for state in STATES if any(job.state == state for job in jobs)]
    lines = ["".join([f"{'':<32}", *(f"{state:>10}" for state in states)])]
    for dataset, algorithm in sorted({(job.dataset, job.algorithm) for job in jobs}):
        name = "not begun, or no row yet" if algorithm == "?" else f"{dataset} {algorithm}"
        lines.append("".join([f"{name:<32}", *(f"{counts[dataset, algorithm, state]:>10,}" for state in states)]))
    total = Counter(job.state for job in jobs)
    lines.append("".join([f"{'all':<32}", *(f"{total[state]:>10,}" for state in states)]))
    named = (RUNNING, FAILED, STOPPED, UNKNOWN)
    begun = [job for job in jobs if job.state in named or (job.state == QUEUED and job.interrupted)]
    begun.sort(key=lambda job: job.state)
    return "\n".join([*lines, *(job.line() for job in begun)])


def _is_job(folder: Path) -> bool:
    return len(folder.name) == 32 and set(folder.name) <= set("0123456789abcdef")


def _job(folder: Path) -> JobStatus:
    names = set(os.listdir(folder))
    args, step = _rows(folder / "results.jsonl") if "results.jsonl" in names else ({}, None)
    done = "done" in names
    if done:
        state = DONE
    elif not names:
        state = WAITING
    elif RESUME_FOLDER not in names:
        state = UNKNOWN
    else:
        state = RUNNING if is_held(folder / RESUME_FOLDER) else STOPPED
        step = max((each for each in (step, _last_update(folder / RESUME_FOLDER)) if each is not None), default=None)
    known = {}
    if args:
        known = {
            "algorithm": args["algorithm"],
            "dataset": args["dataset"],
            "test_envs": tuple(args["test_envs"]),
            "trial": args["trial_seed"],
        }
    return JobStatus(
        folder.name,
        state,
        **known,
        step=step,
        continued=0 if done or "out.txt" not in names else _times_continued(folder / "out.txt"),
        last_error=last_line(tail(folder / "err.txt")) if state in (STOPPED, UNKNOWN) and "err.txt" in names else "",
    )


def _in_slurm(output_dir: Path, job: JobStatus, events: Sequence[dict], queue: Mapping[str, str] | None) -> JobStatus:
    """The status with what Slurm adds. events: of the job; queue: what Slurm has, None if it could not be asked."""
    if job.state == DONE or not events:
        return job
    last = events[-1]
    in_queue = (queue or {}).get(last["slurm_job"])
    if job.state == RUNNING:
        state = RUNNING
    elif in_queue is not None and last["event"] == slurm_records.INTERRUPTED:
        state = QUEUED  # for some seconds Slurm calls a job that it will queue again COMPLETING
    elif in_queue is not None:
        state = QUEUED if in_queue in PENDING else RUNNING
    elif last["event"] == slurm_records.FAILED:
        state = FAILED
    elif queue is not None and job.state == WAITING:
        state = STOPPED  # Slurm has let go of it before it began: it was cancelled, or the set-up lines failed
    else:
        state = job.state
    exit_status = last.get("status") if state == FAILED else None
    last_error = job.last_error if state in (FAILED, STOPPED, UNKNOWN) else ""
    if state == STOPPED and not last_error:
        last_error = last_line(tail(output_dir / slurm_records.FOLDER / f"{last['slurm_job']}_0_log.err"))
    return replace(
        job,
        state=state,
        interrupted=sum(event["event"] == slurm_records.INTERRUPTED for event in events),
        exit_status=exit_status,
        last_error=last_error,
    )


def _rows(path: Path) -> tuple[dict, int | None]:
    """The run's arguments from the first row, and the step of the last whole one. A damaged file gives ({}, None)."""
    try:
        with path.open("rb") as file:
            first = file.readline()
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = [line for line in [first, *file.read().split(b"\n")[1:]] if line.endswith((b"}", b"}\n"))]
        return json.loads(first)["args"], json.loads(lines[-1])["step"]
    except (OSError, ValueError, KeyError, IndexError):
        return {}, None


def _last_update(resume: Path) -> int | None:
    """The step of the last update in the journal, whose lines are a checksum and a JSON object."""
    for line in reversed(tail(resume / "journal").splitlines()):
        _, _, record = line.partition(" ")
        try:
            return json.loads(record)["update"]
        except (ValueError, KeyError, TypeError):
            continue  # an evaluation, or a line that is being written
    return None


def _times_continued(out: Path) -> int:
    with out.open(errors="replace") as file:
        return sum(line.startswith(CONTINUED) for line in file)
