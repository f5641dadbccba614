"""Run a sweep: `python -m domainbed_domainfusion.minibed.scripts.sweep launch --command_launcher local …`.

The output folder is the sweep's state: each job's folder is named after the MD5 of its arguments, and `done` in it
marks a finished one. A job that was started and has no `done` is incomplete; it runs again only after
`delete_incomplete`.
"""

import argparse
import copy
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from ...errors import InputError, unknown_name
from .. import algorithms, command_launchers, datasets
from ..lib import misc

TRAIN_MODULE = f"{__package__}.train"


class Job:
    """One run of `train`: its arguments, its folder, its shell command and its state on disk."""

    NOT_LAUNCHED = "Not launched"
    INCOMPLETE = "Incomplete"
    DONE = "Done"

    def __init__(self, train_args: dict[str, Any], sweep_output_dir: str):
        name = hashlib.md5(json.dumps(train_args, sort_keys=True).encode("utf-8")).hexdigest()
        self.output_dir = os.path.join(sweep_output_dir, name)
        self.train_args = {**copy.deepcopy(train_args), "output_dir": self.output_dir}
        self.command_str = self._command()
        self.state = self._state()

    def _command(self) -> str:
        words = [shlex.quote(sys.executable), "-m", TRAIN_MODULE]
        for name, value in sorted(self.train_args.items()):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(shlex.quote(str(each)) for each in values)]
        return " ".join(words)

    def _state(self) -> str:
        if os.path.exists(os.path.join(self.output_dir, "done")):
            return Job.DONE
        return Job.INCOMPLETE if os.path.exists(self.output_dir) else Job.NOT_LAUNCHED

    def __str__(self) -> str:
        what = tuple(self.train_args[name] for name in ("dataset", "algorithm", "test_envs", "hparams_seed"))
        return f"{self.state}: {self.output_dir} {what}"

    @staticmethod
    def launch(jobs: Sequence["Job"], launcher_fn: Callable[[list[str]], None]) -> None:
        """Make the jobs' folders and hand their commands to the launcher, shuffled so that progress is even."""
        print("Launching...")
        jobs = list(jobs)
        np.random.shuffle(jobs)  # type: ignore[arg-type]  # numpy shuffles any list in place
        print("Making job directories:")
        for job in tqdm.tqdm(jobs, leave=False):
            os.makedirs(job.output_dir, exist_ok=True)
        launcher_fn([job.command_str for job in jobs])
        print(f"Launched {len(jobs)} jobs!")

    @staticmethod
    def delete(jobs: Sequence["Job"]) -> None:
        """Remove the jobs' folders and all that is in them."""
        print("Deleting...")
        for job in jobs:
            shutil.rmtree(job.output_dir)
        print(f"Deleted {len(jobs)} jobs!")


def all_test_env_combinations(n: int) -> Iterator[list[int]]:
    """Every choice of one or two test environments out of n; at least 3, so that a training environment remains."""
    if n < 3:
        raise InputError("Leaving two environments out takes a dataset of at least three: use --single_test_envs.")
    for i in range(n):
        yield [i]
        yield from ([i, j] for j in range(i + 1, n))


def _test_env_choices(dataset: str, single_test_envs: bool) -> list[list[int]]:
    n = datasets.num_environments(dataset)
    return [[i] for i in range(n)] if single_test_envs else list(all_test_env_combinations(n))


def make_args_list(
    n_trials: int,
    dataset_names: Sequence[str],
    algorithms: Sequence[str],
    n_hparams_from: int,
    n_hparams: int,
    steps: int | None,
    data_dir: str,
    task: str,
    holdout_fraction: float,
    single_test_envs: bool,
    hparams: str | None,
) -> list[dict[str, Any]]:
    """The arguments of every job: (trial, dataset, algorithm, test envs, hparams seed), the last changing fastest."""
    optional = {name: value for name, value in (("steps", steps), ("hparams", hparams)) if value is not None}
    return [
        {
            "dataset": dataset,
            "algorithm": algorithm,
            "test_envs": test_envs,
            "holdout_fraction": holdout_fraction,
            "hparams_seed": hparams_seed,
            "data_dir": data_dir,
            "task": task,
            "trial_seed": trial_seed,
            "seed": misc.seed_hash(dataset, algorithm, test_envs, hparams_seed, trial_seed),
            **optional,
        }
        for trial_seed in range(n_trials)
        for dataset in dataset_names
        for algorithm in algorithms
        for test_envs in _test_env_choices(dataset, single_test_envs)
        for hparams_seed in range(n_hparams_from, n_hparams)
    ]


def ask_for_confirmation() -> None:
    """Exit unless the answer begins with a y."""
    if not input("Are you sure? (y/n) ").strip().lower().startswith("y"):
        print("Nevermind!")
        sys.exit(0)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with DomainBed's names and defaults.

    Raises InputError for an unknown dataset, algorithm or launcher.
    """
    parser = argparse.ArgumentParser(description="Run a sweep")
    parser.add_argument("command", choices=["launch", "delete_incomplete"])
    parser.add_argument("--datasets", nargs="+", default=[name for name in datasets.DATASETS if "Debug" not in name])
    parser.add_argument("--algorithms", nargs="+", default=algorithms.ALGORITHMS)
    parser.add_argument("--task", type=str, default="domain_generalization")
    parser.add_argument("--n_hparams_from", type=int, default=0)
    parser.add_argument("--n_hparams", type=int, default=20)
    parser.add_argument("--output_dir", type=str, required=True)
    parser.add_argument("--data_dir", type=str, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n_trials", type=int, default=3)
    parser.add_argument("--command_launcher", type=str, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--hparams", type=str)
    parser.add_argument("--holdout_fraction", type=float, default=0.2)
    parser.add_argument("--single_test_envs", action="store_true")
    parser.add_argument("--skip_confirmation", action="store_true")
    args = parser.parse_args(argv)
    for name in args.datasets:
        datasets.get_dataset_class(name)
    for name in args.algorithms:
        algorithms.get_algorithm_class(name)
    if args.command_launcher not in command_launchers.REGISTRY:
        raise unknown_name("command launcher", args.command_launcher, command_launchers.REGISTRY)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """List the sweep's jobs with their states, then launch those not launched or delete those incomplete."""
    args = parse_arguments(argv)
    args_list = make_args_list(
        n_trials=args.n_trials,
        dataset_names=args.datasets,
        algorithms=args.algorithms,
        n_hparams_from=args.n_hparams_from,
        n_hparams=args.n_hparams,
        steps=args.steps,
        data_dir=args.data_dir,
        task=args.task,
        holdout_fraction=args.holdout_fraction,
        single_test_envs=args.single_test_envs,
        hparams=args.hparams,
    )
    by_state: dict[str, list[Job]] = {Job.DONE: [], Job.INCOMPLETE: [], Job.NOT_LAUNCHED: []}
    for train_args in args_list:
        job = Job(train_args, args.output_dir)
        by_state[job.state].append(job)
        print(job)
    counts = ", ".join(f"{len(members)} {state.lower()}" for state, members in by_state.items())
    print(f"{len(args_list)} jobs: {counts}.")
    if args.command == "launch":
        chosen = by_state[Job.NOT_LAUNCHED]
        print(f"About to launch {len(chosen)} jobs.")
    else:
        chosen = by_state[Job.INCOMPLETE]
        print(f"About to delete {len(chosen)} jobs.")
    if not args.skip_confirmation:
        ask_for_confirmation()
    if args.command == "launch":
        Job.launch(chosen, command_launchers.REGISTRY[args.command_launcher])
    else:
        Job.delete(chosen)


if __name__ == "__main__":
    main()
