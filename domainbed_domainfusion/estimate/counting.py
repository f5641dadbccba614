"""What a sweep will do, counted exactly and without running anything: jobs, steps, rounds, images, LD gradients."""

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any, Sequence

from .. import checks, host
from ..errors import InputError
from ..synthetic import domain_shares, round_begins, uses_generated


@dataclass(frozen=True)
class Job:
    """One run of the host's train script, and how much of everything is in it."""

    args: dict[str, Any]  # as the host's make_args_list gives them
    hparams: dict[str, Any]  # as the host's train chooses them
    steps: int
    checkpoints: int
    evaluated: int  # images through `predict` in all evaluations: every split of every environment, each checkpoint
    rounds: int = 0  # of generation
    kept: int = 0  # generated images that enter the generate-dataset
    candidates: int = 0  # generated images, N_c for each one kept
    ld_gradients: int = 0  # images times draws, over all steps
    raw_steps: int = 0  # before the first round, when the generated minibatch is the raw one
    domains: int = 0  # that it trains on

    @property
    def dataset(self) -> str:
        return self.args["dataset"]

    @property
    def algorithm(self) -> str:
        return self.args["algorithm"]


def sweep_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the host's `sweep launch`, with its names and defaults; the verb may be left out.

    Raises InputError for an unknown dataset, algorithm, launcher or hparam.
    """
    parser = argparse.ArgumentParser(prog="domainfusion estimate", description="The arguments of the host's sweep, "
                                     "and --json for numbers that a program can read.")
    parser.add_argument("command", nargs="?", choices=["launch"], default="launch")
    every = [name for name in host.datasets.DATASETS if "Debug" not in name]
    parser.add_argument("--datasets", nargs="+", default=every)
    parser.add_argument("--algorithms", nargs="+", default=host.algorithms.ALGORITHMS)
    parser.add_argument("--task", default="domain_generalization")
    parser.add_argument("--n_hparams_from", type=int, default=0)
    parser.add_argument("--n_hparams", type=int, default=20)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n_trials", type=int, default=3)
    parser.add_argument("--command_launcher", required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--hparams")
    parser.add_argument("--holdout_fraction", type=float, default=0.2)
    parser.add_argument("--single_test_envs", action="store_true")
    parser.add_argument("--skip_confirmation", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    arguments = parser.parse_args(argv)
    for what, names, known in (("dataset", arguments.datasets, vars(host.datasets)),
                               ("algorithm", arguments.algorithms, vars(host.algorithms)),
                               ("launcher", [arguments.command_launcher], host.command_launchers.REGISTRY)):
        for name in names:
            if name not in known:
                raise InputError(f"The host knows no {what} {name!r}: `domainfusion estimate` takes the arguments of "
                                 "its sweep.")
    if arguments.hparams is not None:
        checks.check_hparams_text(arguments.hparams)
    return arguments


def jobs_to_launch(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """The args of the jobs that `sweep launch` would start now, and how many it has anyhow (done or begun)."""
    sweep = host.module("scripts.sweep")
    every = sweep.make_args_list(
        n_trials=arguments.n_trials, dataset_names=arguments.datasets, algorithms=arguments.algorithms,
        n_hparams_from=arguments.n_hparams_from, n_hparams=arguments.n_hparams, steps=arguments.steps,
        data_dir=arguments.data_dir, task=arguments.task, holdout_fraction=arguments.holdout_fraction,
        single_test_envs=arguments.single_test_envs, hparams=arguments.hparams)
    waiting = [args for args in every if sweep.Job(args, arguments.output_dir).state == sweep.Job.NOT_LAUNCHED]
    return waiting, len(every) - len(waiting)


def hparams_of(args: dict[str, Any]) -> dict[str, Any]:
    """The hparams of a job, chosen as the host's train script chooses them."""
    registry, algorithm, dataset = host.hparams_registry, args["algorithm"], args["dataset"]
    if args["hparams_seed"] == 0:
        hparams = registry.default_hparams(algorithm, dataset)
    else:
        seed = host.lib.misc.seed_hash(args["hparams_seed"], args["trial_seed"])
        hparams = registry.random_hparams(algorithm, dataset, seed)
    return {**hparams, **json.loads(args.get("hparams") or "{}")}


def count(args: dict[str, Any], hparams: dict[str, Any], images: Sequence[int]) -> Job:
    """Count one job. images: how many each environment of the dataset has."""
    dataset = host.datasets.get_dataset_class(args["dataset"])
    steps = args.get("steps") or dataset.N_STEPS
    frequency = args.get("checkpoint_freq") or dataset.CHECKPOINT_FREQ
    checkpoints = len({*range(0, steps, frequency), steps - 1})
    training = [length for i, length in enumerate(in_splits(images, args["holdout_fraction"]))
                if i not in args["test_envs"]]
    plain = Job(args, hparams, steps, checkpoints, checkpoints * sum(images), raw_steps=steps, domains=len(training))
    if args["algorithm"] != "DomainFusion":
        return plain
    rounds = _rounds(steps, hparams, images, args["holdout_fraction"]) if uses_generated(hparams) else []
    kept = len(rounds) * sum(domain_shares(hparams["generation_budget"], training))
    batch = hparams["batch_size"] * len(training)
    seen = min(hparams["ld_images"] or batch, batch) if hparams["lambda2"] > 0 else 0
    return replace(plain, rounds=len(rounds), kept=kept,
                   candidates=kept * (hparams["candidates"] if hparams["sampling_strategy"] else 1),
                   ld_gradients=steps * seen * hparams["ld_draws"], raw_steps=rounds[0] if rounds else steps)


def in_splits(images: Sequence[int], holdout_fraction: float) -> list[int]:
    """The lengths of the in-splits, as the host's train script cuts them."""
    return [length - int(length * holdout_fraction) for length in images]


def _rounds(steps: int, hparams: dict, images: Sequence[int], holdout_fraction: float) -> list[int]:
    """The steps at which a round of generation begins; an epoch is the host's, of the smallest of all in-splits."""
    steps_per_epoch = min(in_splits(images, holdout_fraction)) / hparams["batch_size"]
    return [step for step in range(steps) if round_begins(step, steps_per_epoch, hparams)]
