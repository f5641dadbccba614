"""The jobs that are missing or unfinished in a sweep folder's grid, and the commands that run them."""

import itertools
import json
import shlex
from dataclasses import dataclass
from typing import Any

from .jobs import Job, SweepFolder

# The arguments that all jobs of one `sweep launch` share, and their defaults. A command repeats only other values.
SHARED = {"data_dir": None, "task": "domain_generalization", "holdout_fraction": 0.2, "steps": None, "hparams": None}


@dataclass(frozen=True)
class Gap:
    """The missing jobs of one algorithm in a sweep, and the commands that run them."""

    dataset: str
    algorithm: str
    jobs: tuple[str, ...]
    commands: tuple[str, ...]


def find_gaps(sweep: SweepFolder) -> list[Gap]:
    """The unfinished part of the grid algorithms × test environments × trials × hparams seeds of each launch.

    Jobs belong to one launch if they share dataset, data folder, task, holdout fraction, steps and hparams. The values
    on each side of the grid are those seen in the folder. An algorithm without any job is therefore not missed. Runs
    that leave out three environments or more were started by hand, since the host's sweep has none: they belong to no
    grid.
    """
    launches: dict[str, list[Job]] = {}
    for job in sweep.jobs:
        if job.args and len(job.args["test_envs"]) <= 2:
            launches.setdefault(_launch_key(job.args), []).append(job)
    gaps = []
    for jobs in launches.values():
        for algorithm in sorted({job.args["algorithm"] for job in jobs}):
            gap = _gap(sweep, algorithm, jobs)
            if gap is not None:
                gaps.append(gap)
    return gaps


def _launch_key(args: dict) -> str:
    return json.dumps([args["dataset"], *(args.get(name) for name in SHARED)])


def _gap(sweep: SweepFolder, algorithm: str, jobs: list[Job]) -> Gap | None:
    sides = [
        sorted({_test_envs(job) for job in jobs}),
        sorted({job.args["trial_seed"] for job in jobs}),
        sorted({job.args["hparams_seed"] for job in jobs}),
    ]
    environments = {env for tests in sides[0] for env in tests}
    sides[0] = sorted({*sides[0], *_expected_tests(jobs[0], environments, sides[0])})
    own = {
        (_test_envs(job), job.args["trial_seed"], job.args["hparams_seed"]): job
        for job in jobs
        if job.args["algorithm"] == algorithm
    }
    missing = [cell for cell in itertools.product(*sides) if cell not in own or not own[cell].done]
    if not missing:
        return None
    names = tuple(
        f"test_envs {' '.join(map(str, tests))}, trial {trial}, hparams seed {seed}" for tests, trial, seed in missing
    )
    arguments = _sweep_arguments(sweep, algorithm, jobs[0].args, sides)
    started = any(cell in own for cell in missing)
    verbs = ("delete_incomplete", "launch") if started else ("launch",)
    return Gap(
        jobs[0].args["dataset"], algorithm, names, tuple(f"domainfusion sweep {verb} {arguments}" for verb in verbs)
    )


def _test_envs(job: Job) -> tuple[int, ...]:
    return tuple(job.args["test_envs"])


def _expected_tests(job: Job, environments: set[int], seen: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The test environments that the host's sweep runs: every single one, and every pair if any pair was run."""
    count = max([*environments, *_environments_in(job)]) + 1
    sizes = {len(tests) for tests in seen} | {1}
    return [tests for size in sizes for tests in itertools.combinations(range(count), size)]


def _environments_in(job: Job) -> list[int]:
    row = job.rows[0] if job.rows else {}
    return [env for env in range(len(row)) if f"env{env}_in_acc" in row]


def _sweep_arguments(sweep: SweepFolder, algorithm: str, args: dict, sides: list) -> str:
    words: list[Any] = [
        "--datasets",
        args["dataset"],
        "--algorithms",
        algorithm,
        "--output_dir",
        sweep.path,
        "--command_launcher",
        "local",
    ]
    tests, trials, seeds = sides
    words += ["--n_trials", max(trials) + 1, "--n_hparams", max(seeds) + 1]
    if min(seeds):
        words += ["--n_hparams_from", min(seeds)]
    if all(len(one) == 1 for one in tests):
        words.append("--single_test_envs")
    for name, default in SHARED.items():
        if args.get(name) not in (None, default):
            words += [f"--{name}", args[name]]
    return " ".join(shlex.quote(str(word)) for word in words)
