"""Runs that were trained on one environment, or that left out three or more: what each was trained on and reached.

The host's selection methods and its sweep know runs with one or two test environments alone. For the others the choice
here is training-domain validation, as the host defines it, on the environments that a run was trained on.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .jobs import Job
from .results import Cell, Choice


@dataclass(frozen=True)
class TrainedOn:
    """One algorithm after training on some environments."""

    algorithm: str
    environments: tuple[str, ...]  # trained on
    cells: tuple[Cell | None, ...]  # for each environment of the dataset; None where it was trained on

    @property
    def average(self) -> float:
        """Mean over the environments that were left out, in percent."""
        return float(np.mean([cell.mean for cell in self.cells if cell is not None]))


def by_training_environments(
    jobs: Iterable[Job], environments: Sequence[str], algorithms: Sequence[str]
) -> list[TrainedOn]:
    """A row for each algorithm and set of training environments, in the order of the environments.

    jobs: those of one dataset; environments: its names; algorithms: the order of the rows within a set.
    """
    groups: dict[tuple, dict[int, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        if job.rows and _is_of_this_kind(job, len(environments)):
            trained = tuple(env for env in range(len(environments)) if env not in job.args["test_envs"])
            groups[trained, job.args["algorithm"]][job.args["trial_seed"]].append(job)
    made = []
    for trained, algorithm in sorted(groups, key=lambda group: (group[0], algorithms.index(group[1]))):
        choices = [_choose(runs, trained) for _, runs in sorted(groups[trained, algorithm].items())]
        cells = tuple(
            None if env in trained else Cell(tuple(choice_of[env] for choice_of in choices))
            for env in range(len(environments))
        )
        made.append(TrainedOn(algorithm, tuple(environments[env] for env in trained), cells))
    return made


def _is_of_this_kind(job: Job, environments: int) -> bool:
    left_out = len(set(job.args["test_envs"]))
    return left_out < environments and (left_out > 2 or (left_out == 2 and environments == 3))


def _choose(runs: list[Job], trained: tuple[int, ...]) -> dict[int, Choice]:
    """For each environment left out, the checkpoint of one trial with the best validation accuracy where it trained."""
    rows = [row for run in runs for row in run.rows]
    validation = [float(np.mean([row[f"env{env}_out_acc"] for env in trained])) for row in rows]
    best = int(np.argmax(validation))
    row, args = rows[best], rows[best]["args"]
    return {
        env: Choice(
            args["trial_seed"],
            args["hparams_seed"],
            row["step"],
            validation[best],
            float(row[f"env{env}_in_acc"]),
            args.get("output_dir", ""),
            row.get("hparams", {}),
        )
        for env in args["test_envs"]
    }
