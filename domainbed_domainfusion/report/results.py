"""The numbers of the tables: the host's own selection methods on a sweep's rows, and the runs that they choose."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hosting import host


@dataclass(frozen=True)
class Choice:
    """The run and checkpoint that a selection method picked for one test environment and trial."""

    trial_seed: int
    hparams_seed: int
    step: int
    val_acc: float
    test_acc: float
    output_dir: str
    hparams: dict


@dataclass(frozen=True)
class Cell:
    """Accuracy on one test environment in percent: mean and standard error over the trials, as the host prints them."""

    choices: tuple[Choice, ...]

    @property
    def mean(self) -> float:
        return 100 * float(np.mean([choice.test_acc for choice in self.choices]))

    @property
    def error(self) -> float:
        # Population standard deviation over sqrt(n): the host's formula, kept so that the digits agree.
        accuracies = [choice.test_acc for choice in self.choices]
        return 100 * float(np.std(accuracies) / np.sqrt(len(accuracies)))

    @property
    def validation(self) -> float:
        """Mean of the validation accuracies that decided the choices, in percent."""
        return 100 * float(np.mean([choice.val_acc for choice in self.choices]))


@dataclass(frozen=True)
class Row:
    """One algorithm: a cell per test environment, None where the selection method has no run to choose from."""

    algorithm: str
    cells: tuple[Cell | None, ...]

    @property
    def trial_means(self) -> tuple[float, ...]:
        """The mean of each trial over the environments with a number, in percent, as in the host's Averages table."""
        by_trial: dict[int, list[float]] = {}
        for cell in self.cells:
            for choice in cell.choices if cell is not None else ():
                by_trial.setdefault(choice.trial_seed, []).append(100 * choice.test_acc)
        return tuple(float(np.mean(accuracies)) for accuracies in by_trial.values())

    @property
    def average_error(self) -> float:
        """Standard error of the average over the trials, in percentage points."""
        return float(np.std(self.trial_means) / np.sqrt(len(self.trial_means)))

    @property
    def average(self) -> float | None:
        """Mean over the environments in percent, None unless every environment has a number."""
        means = [cell.mean for cell in self.cells if cell is not None]
        return float(sum(means) / len(means)) if len(means) == len(self.cells) else None


@dataclass(frozen=True)
class Table:
    """One dataset under one selection method."""

    dataset: str
    method: str
    environments: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def is_empty(self) -> bool:
        return all(cell is None for row in self.rows for cell in row.cells)

    @property
    def trials(self) -> int:
        """The largest number of trials behind any cell."""
        return max((len(cell.choices) for row in self.rows for cell in row.cells if cell is not None), default=0)


def selection_methods() -> list:
    """The host's three selection methods, in the order in which its collect_results prints them."""
    methods = host.module("model_selection")
    return [methods.IIDAccuracySelectionMethod, methods.LeaveOneOutSelectionMethod, methods.OracleSelectionMethod]


def tables(records: Any) -> list[Table]:
    """Every (dataset, selection method) table of the host's collect_results, datasets outermost.

    `records` is the host's `Q` of result rows. Datasets and algorithms unknown to the host come last.
    """
    groups = host.module("lib.reporting").get_grouped_records(records)
    return [
        _table(groups, dataset, algorithm_names(records, dataset), environment_names(dataset, records), method)
        for dataset in dataset_names(records)
        for method in selection_methods()
    ]


def dataset_names(records: Any) -> list[str]:
    """The datasets in the records, in the host's order."""
    return _in_order(records.select("args.dataset").unique(), host.module("datasets").DATASETS)


def algorithm_names(records: Any, dataset: str) -> list[str]:
    """The algorithms in the records of a dataset, in the host's order."""
    of_dataset = records.filter_equals("args.dataset", dataset)
    return _in_order(of_dataset.select("args.algorithm").unique(), host.module("algorithms").ALGORITHMS)


def environment_names(dataset: str, records: Any) -> tuple[str, ...]:
    """The environments' names as the host shows them, or as kept results name them; else env0, env1, …"""
    datasets = host.module("datasets")
    if dataset in datasets.DATASETS:
        names = getattr(datasets.get_dataset_class(dataset), "ENVIRONMENTS", None)
        if names is not None:
            return tuple(str(name) for name in names)
    rows = records.filter_equals("args.dataset", dataset)
    kept = next((row["environments"] for row in rows if "environments" in row), None)
    if kept is not None:
        return tuple(kept)
    count = max(sum(f"env{env}_in_acc" in row for env in range(len(row))) for row in rows)
    return tuple(f"env{env}" for env in range(count))


def _in_order(names: Any, known: list[str]) -> list[str]:
    """`names` in the order of `known`, then the others."""
    return [name for name in known if name in names] + [name for name in names if name not in known]


def _table(groups: Any, dataset: str, algorithms: list[str], environments: tuple[str, ...], method: Any) -> Table:
    rows = []
    for algorithm in algorithms:
        cells = []
        for env in range(len(environments)):
            cell_groups = groups.filter_equals("dataset, algorithm, test_env", (dataset, algorithm, env))
            choices = [choice for choice in (_choose(group, method) for group in cell_groups) if choice is not None]
            choices.sort(key=lambda choice: choice.trial_seed)
            cells.append(Cell(tuple(choices)) if choices else None)
        rows.append(Row(algorithm, tuple(cells)))
    return Table(dataset, method.name, environments, tuple(rows))


def _choose(group: dict, method: Any) -> Choice | None:
    """The choice of `method` among the runs of one (trial, dataset, algorithm, test environment); None without any."""
    ranking = method.hparams_accs(group["records"])
    if not len(ranking):
        return None
    accuracies, run = ranking[0]
    # The host returns accuracies without the step: find the step whose rows alone give the same accuracies.
    steps = [step for step, rows in run.group("step") if method.run_acc(rows) == accuracies]
    last = method is host.module("model_selection").OracleSelectionMethod
    step = max(steps) if last else min(steps)
    row = next(row for row in run if row["step"] == step and len(row["args"]["test_envs"]) == 1)
    return Choice(
        group["trial_seed"],
        row["args"]["hparams_seed"],
        step,
        float(accuracies["val_acc"]),
        float(accuracies["test_acc"]),
        row["args"].get("output_dir", ""),
        row.get("hparams", {}),
    )
