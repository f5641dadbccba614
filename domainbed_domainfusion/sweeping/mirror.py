"""`domainfusion sweep mirror OUT`: the results rows of a sweep's jobs, copied to TensorBoard or Weights & Biases.

It only reads the jobs' folders, so it can run beside the sweep, after it, or on another machine that shares the folder.
What has been copied is remembered in LOGS/mirrored.json, and a second call copies only what is new.
"""

import argparse
import hashlib
import json
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_atomically
from ..report.jobs import Job, read_sweep

SECONDS = 10  # between two looks with --watch
STATE_FILE = "mirrored.json"
NOT_MIRRORED = ("step",)  # it is the axis

Write = Callable[[int, dict[str, float]], None]  # takes a step and the numbers of its row
Sink = Callable[[Job], AbstractContextManager[Write]]  # opens a job's run


def parser() -> argparse.ArgumentParser:
    """The parser of `domainfusion sweep mirror`."""
    parser = argparse.ArgumentParser(prog="domainfusion sweep mirror")
    parser.add_argument("output_dir", type=Path, help="the --output_dir of a sweep")
    parser.add_argument("--to", choices=("tensorboard", "wandb"), required=True, help="where the rows go")
    parser.add_argument("--logs", type=Path, help="the folder of the copies; without it OUT/tensorboard or OUT/wandb")
    parser.add_argument("--project", default="domainbed", help="the project in Weights & Biases (default: domainbed)")
    parser.add_argument("--watch", action="store_true", help="copy new rows every few seconds until every job is done")
    return parser


def command(words: Sequence[str]) -> int:
    """Run `domainfusion sweep mirror <words>` and return the exit status."""
    given = parser().parse_args(words)
    logs = given.logs or given.output_dir / given.to
    if given.to == "tensorboard":
        return mirror(given.output_dir, logs, TensorBoard(logs), given.watch)
    sink = WeightsAndBiases(logs, given.project)
    return mirror(given.output_dir, logs, sink, given.watch, only_done=sink.is_offline)


def mirror(output_dir: Path, logs: Path, sink: Sink, watch: bool = False, only_done: bool = False) -> int:
    """Copy all rows that have not been copied, with `watch` again and again until every job is done. Returns 0.

    only_done: a job is copied as a whole, when it is done. Raises InputError if there is no sweep in `output_dir`, or
    if what has been copied cannot be remembered in `logs`.
    """
    while True:
        sweep = read_sweep(output_dir)
        copied = _copied(logs)
        logs.mkdir(parents=True, exist_ok=True)
        for job in sweep.jobs:
            before = copied.get(job.folder.name, 0)
            if len(job.rows) <= before or (only_done and not job.done):
                continue
            with sink(job) as write:
                for row in job.rows[before:]:
                    write(row["step"], _numbers(row))
            copied[job.folder.name] = len(job.rows)
            write_atomically(logs / STATE_FILE, json.dumps(copied, indent=1))
        if not watch or all(job.done for job in sweep.jobs):
            print(f"{sum(copied.values()):,} rows of {len(copied):,} jobs are in {logs}.")
            return 0
        time.sleep(SECONDS)


class TensorBoard:
    """A `Sink`: each job is a run, a folder of event files below `logs`."""

    def __init__(self, logs: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard") from error
        self._make: Callable[[str], Any] = SummaryWriter
        self._logs = logs

    @contextmanager
    def __call__(self, job: Job) -> Iterator[Write]:
        writer = self._make(str(self._logs / run_name(job)))
        writer.add_text("hparams", f"```\n{json.dumps(_hparams(job), indent=1)}\n```")

        def write(step: int, row: dict[str, float]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, step)

        try:
            yield write
        finally:
            writer.close()


class WeightsAndBiases:
    """A `Sink`: each job is a run of the project, grouped by its algorithm. Offline, the runs are files in `logs`."""

    def __init__(self, logs: Path, project: str):
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb") from error
        self._wandb, self._logs, self._project = wandb, logs, project

    @property
    def is_offline(self) -> bool:
        """Whether runs go to files. Such a run cannot be continued: its job has to be written at once."""
        return self._wandb.setup().settings.mode in ("offline", "dryrun")

    @contextmanager
    def __call__(self, job: Job) -> Iterator[Write]:
        with self._wandb.init(
            project=self._project,
            id=hashlib.md5(str(job.folder.absolute()).encode()).hexdigest()[:16],
            name=run_name(job),
            group=job.args["algorithm"],
            config={**job.args, "hparams": _hparams(job)},
            dir=str(self._logs),
            resume=None if self.is_offline else "allow",
            reinit="finish_previous",
        ) as run:
            yield lambda step, row: run.log(row, step=step)


def run_name(job: Job) -> str:
    """E.g. "PACS/DomainFusion/env3-trial0-hparams0-9f86d081": the end is the beginning of the job folder's name."""
    args = job.args
    tests = "-".join(f"env{each}" for each in args["test_envs"])
    return (
        f"{args['dataset']}/{args['algorithm']}/{tests}-trial{args['trial_seed']}-hparams{args['hparams_seed']}-"
        f"{job.folder.name[:8]}"
    )


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The columns of a row that hold numbers."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in NOT_MIRRORED and isinstance(value, numbers.Real) and not isinstance(value, bool)
    }


def _hparams(job: Job) -> dict[str, Any]:
    return job.rows[0].get("hparams", {})


def _copied(logs: Path) -> dict[str, int]:
    """Job folder's name → how many of its rows have been copied. Raises InputError if the file is damaged."""
    path = logs / STATE_FILE
    if not path.exists():
        return {}
    try:
        copied = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(each, int) for each in copied.values()):
            raise ValueError("not numbers of rows")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({' '.join(str(error).split())}): delete {logs} to copy all rows again."
        ) from error
    return copied


def _not_installed(package: str) -> InputError:
    return InputError(f"This needs the package {package}: pip install 'domainbed-domainfusion[{package}]'.")
