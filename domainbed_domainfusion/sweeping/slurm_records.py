"""What has become of a sweep's jobs in Slurm: OUT/slurm/<name of the job folder>.jsonl, a line for each event.

The launcher and the jobs write these files; `sweep status` reads them, and asks Slurm for what is in its queue.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError

FOLDER = "slurm"  # in the sweep's --output_dir, for submitit's files and these
SUBMITTED, STARTED, INTERRUPTED, FAILED, ENDED = "submitted", "started", "interrupted", "failed", "ended"
SQUEUE = ("squeue", "--noheader", "--array", "--format=%i %T")
ASKED_SECONDS = 60


def append(job_folder: Path, event: str, slurm_job: str, **details: object) -> None:
    """Add an event of a job. slurm_job: its id in Slurm, such as "17" or "17_3". details: plain values."""
    record = {"event": event, "slurm_job": slurm_job, "at": time.time(), **details}
    path = _path(job_folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")  # one short write: a reader never meets half a line for long


def read(job_folder: Path) -> list[dict]:
    """The events of a job, the oldest first; none if it was not submitted. A torn line is passed over."""
    try:
        lines = _path(job_folder).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"event", "slurm_job"} <= set(record):
            events.append(record)
    return events


def queue(slurm_jobs: Iterable[str]) -> dict[str, str]:
    """What Slurm's queue has of these jobs: id → state, such as PENDING or RUNNING. A job that has left is missing.

    Raises InputError if Slurm cannot be asked.
    """
    numbers = sorted({job.partition("_")[0] for job in slurm_jobs}, key=int)
    if not numbers:
        return {}
    command = [*SQUEUE, f"--jobs={','.join(numbers)}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASKED_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"Slurm cannot be asked ({error}): run this where squeue answers.") from error
    if asked.returncode != 0 and "Invalid job id" in asked.stderr:
        return {}  # so Slurm answers if it has forgotten all of them
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        raise InputError(f"Slurm cannot be asked ({reason}): run this where squeue answers.")
    return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())


def _path(job_folder: Path) -> Path:
    return Path(os.path.abspath(job_folder)).parent / FOLDER / f"{job_folder.name}.jsonl"
