"""Model selection: which run and checkpoint of a sweep counts (Gulrajani & Lopez-Paz 2021, section 3).

A method turns the records of one (trial, dataset, algorithm, test env) into one target accuracy in [0, 1].
"""

import itertools
from typing import Any

import numpy as np

from .lib.query import Q

Accuracies = dict[str, float]  # {"val_acc": …, "test_acc": …}


def _single_test_env(records: Q) -> Q:
    return records.filter(lambda record: len(record["args"]["test_envs"]) == 1)


def _number_of_envs(record: dict[str, Any]) -> int:
    return next(i for i in itertools.count() if f"env{i}_out_acc" not in record)


class SelectionMethod:
    """Subclasses define in `run_acc` how one run (one hparams seed) is judged."""

    name: str

    @classmethod
    def run_acc(cls, run_records: Q) -> Accuracies | None:
        """A run's best validation accuracy and the test accuracy at that checkpoint; None if records are missing."""
        raise NotImplementedError

    @classmethod
    def hparams_accs(cls, records: Q) -> list[tuple[Accuracies, Q]]:
        """(run_acc, records) of every hparams seed, the best validation accuracy first."""
        runs = records.group("args.hparams_seed").map(lambda seed, members: (cls.run_acc(members), members))
        return runs.filter(lambda run: run[0] is not None).sorted(lambda run: run[0]["val_acc"])[::-1]

    @classmethod
    def sweep_acc(cls, records: Q) -> float | None:
        """The test accuracy of the run with the best validation accuracy."""
        runs = cls.hparams_accs(records)
        return runs[0][0]["test_acc"] if runs else None


class IIDAccuracySelectionMethod(SelectionMethod):
    """The checkpoint with the highest mean accuracy on the training environments' out-splits."""

    name = "training-domain validation set"

    @staticmethod
    def _at_step(record: dict[str, Any]) -> Accuracies:
        test_env = record["args"]["test_envs"][0]
        out = [record[f"env{i}_out_acc"] for i in range(_number_of_envs(record)) if i != test_env]
        return {"val_acc": np.mean(out), "test_acc": record[f"env{test_env}_in_acc"]}

    @classmethod
    def run_acc(cls, run_records: Q) -> Accuracies | None:
        records = _single_test_env(run_records)
        return records.map(cls._at_step).argmax("val_acc") if len(records) else None


class LeaveOneOutSelectionMethod(SelectionMethod):
    """The step with the best mean accuracy on left-out training environments.

    Each training environment is judged by a second run, which leaves it out as well.
    """

    name = "leave-one-domain-out cross-validation"

    @staticmethod
    def _at_step(records: Q) -> Accuracies | None:
        alone = _single_test_env(records)
        if len(alone) != 1:
            return None
        test_env = alone[0]["args"]["test_envs"][0]
        left_out = {}
        for record in records.filter(lambda record: len(record["args"]["test_envs"]) == 2):
            (other,) = set(record["args"]["test_envs"]) - {test_env}
            left_out[other] = record[f"env{other}_in_acc"]
        others = [i for i in range(_number_of_envs(records[0])) if i != test_env]
        if not all(i in left_out for i in others):
            return None
        return {
            "val_acc": np.sum([left_out[i] for i in others]) / len(others),
            "test_acc": alone[0][f"env{test_env}_in_acc"],
        }

    @classmethod
    def run_acc(cls, run_records: Q) -> Accuracies | None:
        steps = run_records.group("step").map(lambda step, members: cls._at_step(members)).filter_not_none()
        return steps.argmax("val_acc") if len(steps) else None


class OracleSelectionMethod(SelectionMethod):
    """The last checkpoint, judged on the test environment's own out-split: an upper bound, not a fair number."""

    name = "test-domain validation set (oracle)"

    @classmethod
    def run_acc(cls, run_records: Q) -> Accuracies | None:
        records = _single_test_env(run_records)
        if not len(records):
            return None
        last = records.sorted(lambda record: record["step"])[-1]
        test_env = last["args"]["test_envs"][0]
        return {"val_acc": last[f"env{test_env}_out_acc"], "test_acc": last[f"env{test_env}_in_acc"]}


METHODS = (IIDAccuracySelectionMethod, LeaveOneOutSelectionMethod, OracleSelectionMethod)
