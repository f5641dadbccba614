"""Several sweeps in one table: arms of an ablation side by side, or arms judged without the test domain.

An arm is an algorithm of a sweep folder (or of a kept file). All arms are on one dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import results
from .jobs import SweepFolder, mean_evaluations, mean_training_ldm_seconds, read_sweep
from .work_chart import EVALUATIONS, SECONDS, Mark, Unit, work_chart

DASH = "–"


@dataclass(frozen=True)
class Arm:
    """One row: its name, a pair (mean, standard error over the trials) in percent for each column, or None; its trials.

    average_error: the standard error of the average over the trials.
    evaluations: of the diffusion model's U-Net in a job, a mean over all jobs; None if they were not recorded.
    seconds: those that generation and Latent Distillation took in a job's steps, likewise.
    """

    name: str
    cells: tuple[tuple[float, float] | None, ...]
    average_error: float
    trials: int
    evaluations: float | None = None
    seconds: float | None = None

    @property
    def average(self) -> float | None:
        """Mean of the cells, None unless every one has a number."""
        means = [cell[0] for cell in self.cells if cell is not None]
        return float(np.mean(means)) if len(means) == len(self.cells) else None


@dataclass(frozen=True)
class Comparison:
    """Arms over the environments of a dataset."""

    dataset: str
    method: str
    environments: tuple[str, ...]
    arms: tuple[Arm, ...]


def compare(paths: Sequence[Path], only: Sequence[str] = (), trials: Sequence[int] = ()) -> Comparison:
    """Test accuracies by training-domain validation, the numbers of the host's own table of each sweep.

    only: the environments that are compared; empty for all. The averages are over these. trials: those that are
    compared, by the host's --trial_seed; empty for all. Raises InputError for an environment that the dataset does not
    have, and for a sweep without results in these trials.
    """
    found, arms = _Dataset(), []
    for path, sweep, records in _records(paths, trials):
        for table in results.tables(records):
            if table.method != results.selection_methods()[0].name:
                continue
            found.check(table.dataset, table.environments, path)
            columns = _columns(only, table.environments, table.dataset)
            for whole in table.rows:
                row = results.Row(whole.algorithm, tuple(whole.cells[column] for column in columns))
                cells = tuple(None if cell is None else (cell.mean, cell.error) for cell in row.cells)
                error = row.average_error if row.trial_means else float("nan")
                jobs = [job for job in sweep.jobs if not trials or job.args.get("trial_seed") in trials]
                jobs = [job for job in jobs if job.args.get("algorithm") == row.algorithm]
                work = mean_evaluations(jobs), mean_training_ldm_seconds(jobs)
                name = _name(path, row.algorithm, len(table.rows))
                arms.append(Arm(name, cells, error, len(row.trial_means), *work))
    environments = tuple(found.environments[column] for column in _columns(only, found.environments, found.name))
    return Comparison(found.name, results.selection_methods()[0].name, environments, tuple(arms))


def _columns(only: Sequence[str], environments: Sequence[str], dataset: str) -> list[int]:
    for name in only:
        if name not in environments:
            raise InputError(f"{dataset} has no environment {name}: give some of {', '.join(environments)}.")
    return [column for column, name in enumerate(environments) if not only or name in only]


def compare_left_out(paths: Sequence[Path]) -> Comparison:
    """Accuracies on left-out *training* domains: column X has no image of the environment X in any of its numbers.

    It is the validation accuracy of DomainBed's leave-one-domain-out selection, and needs no run that is tested on X
    alone: the mean over Y ≠ X of the accuracy on Y of the run that left out X and Y, at the best common checkpoint.
    Raises InputError if a sweep has no runs with two test environments.
    """
    found, arms = _Dataset(), []
    for path, _, records in _records(paths):
        pairs = records.filter(lambda record: len(record["args"]["test_envs"]) == 2)
        if not len(pairs):
            raise InputError(
                f"{path} has no run that left out two environments: launch its sweep without --single_test_envs."
            )
        for dataset in results.dataset_names(pairs):
            found.check(dataset, results.environment_names(dataset, pairs), path)
            names = results.algorithm_names(pairs, dataset)
            for name in names:
                of_arm = pairs.filter_equals("args.dataset, args.algorithm", (dataset, name))
                by_trial = _left_out_by_trial(of_arm, len(found.environments))
                cells = tuple(
                    None if np.isnan(column).any() else (float(column.mean()), _error(column)) for column in by_trial.T
                )
                arms.append(Arm(_name(path, name, len(names)), cells, _error(by_trial.mean(1)), len(by_trial)))
    return Comparison(found.name, "left-out training domains", found.environments, tuple(arms))


def _left_out_by_trial(records: Any, environments: int) -> np.ndarray:
    """(trials, environments) in percent."""
    trials = [members for _, members in sorted(records.group("args.trial_seed"), key=lambda trial: trial[0])]
    return np.array([[left_out_accuracy(rows, env, environments) for env in range(environments)] for rows in trials])


def left_out_accuracy(records: Any, test_env: int, environments: int) -> float:
    """Percent, for the runs of one trial with two test environments each; nan if one of the runs is missing."""
    by_step = []
    for _, rows in records.group("step"):
        accuracies = {}
        for row in rows:
            if test_env in row["args"]["test_envs"]:
                (other,) = set(row["args"]["test_envs"]) - {test_env}
                accuracies[other] = row[f"env{other}_in_acc"]
        if len(accuracies) == environments - 1:
            by_step.append(100 * float(np.mean([accuracies[env] for env in sorted(accuracies)])))
    return max(by_step, default=float("nan"))


def markdown(comparison: Comparison, evaluations: bool = False, seconds: bool = False) -> str:
    """A table with a row per arm; the last column is an arm's average minus the first arm's. One trial has no error.

    evaluations, seconds: one more column each, the diffusion model's work in a job. See `Arm`.
    """
    header = ["arm", *comparison.environments, "average", "to the first"]
    header += ["U-Net evaluations"] * evaluations + ["LDM seconds"] * seconds
    lines = [header, ["---", *("---:" for _ in header[1:])]]
    first = comparison.arms[0].average
    for arm in comparison.arms:
        average = arm.average
        difference = DASH if average is None or first is None else f"{average - first:+.1f}"
        summary = None if average is None else (average, arm.average_error)
        work = [arm.evaluations] * evaluations + [arm.seconds] * seconds
        lines.append([arm.name, *(_text(cell, arm.trials) for cell in (*arm.cells, summary)), difference])
        lines[-1] += [DASH if number is None else f"{number:,.0f}" for number in work]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    trials = sorted({arm.trials for arm in comparison.arms})
    over = f"{trials[0]} trials" if len(trials) == 1 else f"{trials[0]} to {trials[-1]} trials"
    over = "one trial" if trials == [1] else f"± standard error over {over}"
    return f"{comparison.dataset}, accuracy in %, {comparison.method}, {over}\n\n{table}\n"


def best_arms(comparison: Comparison) -> str:
    """One line: for each environment the arm with the highest number in its column, a dash if none has a number."""
    lines = []
    for column, environment in enumerate(comparison.environments):
        ranked = [(arm.cells[column], arm.name) for arm in comparison.arms if arm.cells[column] is not None]
        lines.append(f"{environment}: {max(ranked)[1] if ranked else DASH}")
    return "Chosen where each is the test domain: " + "; ".join(lines) + "\n"


def plot(comparison: Comparison, unit: Unit = EVALUATIONS) -> str:
    """An SVG of the arms' averages against the diffusion model's work. Raises InputError if an arm lacks either."""
    marks = []
    for style, arm in enumerate(comparison.arms):
        work = arm.seconds if unit is SECONDS else arm.evaluations
        if arm.average is None or work is None:
            what = "a number for every environment" if arm.average is None else f"a record of the {unit.recorded}"
            raise InputError(f"The arm {arm.name} has not {what}: leave it out of the plot.")
        marks.append(Mark(arm.name, style, work, arm.average, arm.average_error))
    return str(work_chart(marks, f"{comparison.dataset}: accuracy against work", unit, standing_alone=True))


class _Dataset:
    """The one dataset of a comparison."""

    def __init__(self) -> None:
        self.name = ""
        self.environments: tuple[str, ...] = ()

    def check(self, name: str, environments: tuple[str, ...], path: Path) -> None:
        """Raise InputError if the sweep in `path` is on another dataset than those before it."""
        if self.name and self.name != name:
            raise InputError(f"{path} is a sweep on {name} but those before it are on {self.name}: compare them apart.")
        self.name, self.environments = name, environments


def _records(paths: Sequence[Path], trials: Sequence[int] = ()) -> list[tuple[Path, SweepFolder, Any]]:
    found = []
    for path in paths:
        sweep = read_sweep(path)
        records = sweep.records()
        if not len(records):
            raise InputError(f"No result in {path}: its jobs have written none yet.")
        if trials:
            records = records.filter(lambda record: record["args"]["trial_seed"] in trials)
        if not len(records):
            raise InputError(f"No result of the trials {', '.join(map(str, trials))} in {path}: give others.")
        found.append((path, sweep, records))
    return found


def _name(path: Path, algorithm: str, algorithms: int) -> str:
    """The name of the folder or of the kept file; with several algorithms in it the algorithm's, too."""
    name = path.stem if path.is_file() else path.resolve().name
    return name if algorithms == 1 else f"{name}: {algorithm}"


def _error(values: np.ndarray) -> float:
    return float(np.std(values) / np.sqrt(len(values)))  # the host's formula, as in `results.Cell`


def _text(cell: tuple[float, float] | None, trials: int) -> str:
    if cell is None:
        return DASH
    return f"{cell[0]:.1f}" if trials == 1 else f"{cell[0]:.1f} ± {cell[1]:.1f}"
