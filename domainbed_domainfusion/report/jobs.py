"""A sweep folder on disk, or a kept file of one: its jobs, their result rows, and what is damaged. It is only read."""

import ast
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..diffusion import evaluations
from ..errors import InputError
from ..hosting import host
from .kept import kept_jobs

ARGS_HEADING, HPARAMS_HEADING = "Args:", "HParams:"
TEXT_ARGS = ("algorithm", "dataset", "data_dir", "output_dir", "hparams", "task")
ARGS_KINDS = {"algorithm": str, "dataset": str, "test_envs": list, "trial_seed": int, "hparams_seed": int}
ACCURACY = re.compile(r"env\d+_(in|out)_acc")


@dataclass
class Job:
    """One job folder: its arguments, its result rows, and whether it finished. `damage` has a sentence per bad line."""

    folder: Path
    rows: list[dict] = field(default_factory=list)
    args: dict = field(default_factory=dict)  # empty if nothing is known
    done: bool = False
    damage: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """E.g. "ERM on DigitStyles, test_envs 0, trial 0, hparams seed 0"; the folder's name if nothing is known."""
        if not self.args:
            return self.folder.name
        tests = " ".join(str(env) for env in self.args["test_envs"])
        return (
            f"{self.args['algorithm']} on {self.args['dataset']}, test_envs {tests}, "
            f"trial {self.args['trial_seed']}, hparams seed {self.args['hparams_seed']}"
        )

    @property
    def steps(self) -> int:
        """The number of steps up to the last result row."""
        return max((row["step"] + 1 for row in self.rows), default=0)

    @property
    def ldm_evaluations(self) -> int | None:
        """How often the job evaluated the diffusion model's U-Net; None if nothing is recorded."""
        kept = self.rows[0].get("ldm_evaluations") if self.rows else None
        return evaluations.read(self.folder) if kept is None else kept

    @property
    def training_ldm_seconds(self) -> float | None:
        """Seconds that generation and Latent Distillation took in the job's steps; None if they are not recorded."""
        kept = self.rows[0].get("training_ldm_seconds") if self.rows else None
        if kept is None and self.rows and all("generation_seconds" in row for row in self.rows):
            return sum(sum_over_steps(self.rows, name) for name in ("generation_seconds", "ld_seconds"))
        return kept

    @property
    def last_error(self) -> str | None:
        """The last line of err.txt that is not empty, None if there is none."""
        path = self.folder / "err.txt"
        if not path.is_file():
            return None
        lines = path.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), None)


@dataclass
class SweepFolder:
    """All jobs of a sweep, in the order in which the host reads them."""

    path: Path
    jobs: list[Job]

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if not job.done]

    @property
    def damage(self) -> list[str]:
        return [sentence for job in self.jobs for sentence in job.damage]

    def records(self) -> Any:
        """Every valid row, as the host's own query object (`lib.query.Q`)."""
        return host.module("lib.query").Q([row for job in self.jobs for row in job.rows])


def sum_over_steps(rows: list[dict], key: str) -> float:
    """The sum over all steps. A row has the mean since the previous row, so it counts once per step since then."""
    total, previous = 0.0, -1
    for row in sorted(rows, key=lambda row: row["step"]):
        total += row.get(key, 0.0) * (row["step"] - previous)
        previous = row["step"]
    return total


def mean_evaluations(jobs: Sequence[Job]) -> float | None:
    """The mean of the evaluations of the U-Net over jobs with rows; 0 without a diffusion model.

    None if a job with one has no record, and without any job.
    """
    return _mean_work(jobs, "ldm_evaluations")


def mean_training_ldm_seconds(jobs: Sequence[Job]) -> float | None:
    """The mean of `Job.training_ldm_seconds`, as `mean_evaluations` is that of the evaluations."""
    return _mean_work(jobs, "training_ldm_seconds")


def _mean_work(jobs: Sequence[Job], name: str) -> float | None:
    begun = [job for job in jobs if job.rows]
    numbers = [getattr(job, name) for job in begun]
    if any(number is None and "ldm" in job.rows[0].get("hparams", {}) for job, number in zip(begun, numbers)):
        return None
    return sum(number or 0 for number in numbers) / len(numbers) if numbers else None


def read_sweep(path: Path) -> SweepFolder:
    """Read a sweep folder, DomainBed's or minibed's. Damaged lines are left out and listed; they are no error.

    path: also a file of kept results (see `kept`), all of whose jobs are done. Raises InputError if the folder is
    missing or has no job, and for a damaged file.
    """
    if path.is_file():
        kept = [Job(path / name, rows, rows[0]["args"] if rows else {}, done=True) for name, rows in kept_jobs(path)]
        return SweepFolder(path, kept)
    if not path.is_dir():
        raise InputError(f"No sweep folder at {path}: give --input_dir the --output_dir of a sweep.")
    # The host reads in os.listdir's order, which decides ties between checkpoints.
    folders = [path / name for name in os.listdir(path)]
    jobs = [read_job(folder) for folder in folders if _is_job(folder)]
    if not jobs:
        raise InputError(
            f"No job in {path}: a sweep's --output_dir holds one folder per job, each with out.txt and results.jsonl."
        )
    return SweepFolder(path, jobs)


def _is_job(folder: Path) -> bool:
    # An empty folder with a hash for a name is a job that was launched and died before it wrote anything.
    known = any((folder / name).exists() for name in ("results.jsonl", "out.txt", "err.txt", "done"))
    return known or (folder.is_dir() and len(folder.name) == 32 and set(folder.name) <= set("0123456789abcdef"))


def read_job(folder: Path) -> Job:
    """Read one job folder. Damaged lines are left out and listed in `damage`.

    Without a result row, `args` is read from what the job printed at its start.
    """
    job = Job(folder, done=(folder / "done").exists())
    results = folder / "results.jsonl"
    if results.is_file():
        for number, line in enumerate(results.read_text(errors="replace").split("\n"), start=1):
            if line.strip():
                _add_row(job, line, f"{folder.name}/results.jsonl, line {number}")
    job.args = job.rows[0]["args"] if job.rows else _args_printed(folder / "out.txt")
    return job


def _add_row(job: Job, line: str, where: str) -> None:
    try:
        row = json.loads(line)
    except ValueError:
        job.damage.append(f"{where} is not whole JSON (cut off while it was written?).")
        return
    missing = _missing_from(row)
    if missing:
        job.damage.append(f"{where} lacks {missing}.")
    else:
        job.rows.append(_sharing(row, job.rows[0] if job.rows else row))


def _sharing(row: dict, first: dict) -> dict:
    """The row with the job's first row's args and hparams, where they are equal, and column names once for all rows.

    These are most of a row. A paper's sweep has 300,000 rows.
    """
    equal = {name: first[name] for name in ("args", "hparams") if name in first and first[name] == row.get(name)}
    return {sys.intern(name): equal.get(name, value) for name, value in row.items()}


def _missing_from(row: Any) -> str | None:
    """The first thing that the host's selection methods need and the row lacks; None for a valid row."""
    if not isinstance(row, dict) or not isinstance(row.get("args"), dict):
        return "the run's args"
    args = row["args"]
    for key, kind in ARGS_KINDS.items():
        if not isinstance(args.get(key), kind):
            return f"args.{key}"
    if not isinstance(row.get("step"), int):
        return "step"
    if not args["test_envs"]:
        return "args.test_envs"
    wanted = [f"env{env}_{split}_acc" for env in {0, 1, *args["test_envs"]} for split in ("in", "out")]
    missing = next((key for key in wanted if key not in row), None)
    not_finite = (key for key, value in row.items() if ACCURACY.fullmatch(key) and not _is_finite(value))
    return missing or next((f"a number for {key}" for key in not_finite), None)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _args_printed(path: Path) -> dict:
    """The args that the host's train script prints at its start. A job without a result row leaves nothing else."""
    if not path.is_file():
        return {}
    args: dict[str, Any] = {}
    inside = False
    for line in path.read_text(errors="replace").splitlines():
        if line in (ARGS_HEADING, HPARAMS_HEADING):
            inside = line == ARGS_HEADING
        elif inside and line.startswith("\t") and ": " in line:
            key, value = line.strip().split(": ", 1)
            args[key] = value if key in TEXT_ARGS and value != "None" else _literal(value)
    return args if all(isinstance(args.get(key), kind) for key, kind in ARGS_KINDS.items()) else {}


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
