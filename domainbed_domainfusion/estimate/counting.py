"""Exact counts of a sweep's jobs, steps, rounds, images and LD gradients, without running anything."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..generated.dataset import domain_shares, round_begins, uses_generated
from ..hosting import checks, host
from ..hosting.ld_presets import with_ld_preset
from ..sweeping import sweep_files


@dataclass(frozen=True)
class Job:
    """One run of the host's train script, and its counts."""

    args: dict[str, Any]  # arguments of the host's train script, from the host's sweep
    hparams: dict[str, Any]  # as the host's train script chooses them
    steps: int
    checkpoints: int
    evaluated: int  # images in all evaluations: every split of every environment at each checkpoint
    rounds: int = 0  # rounds of generation
    kept: int = 0  # images written to the generate-dataset, over all rounds
    candidates: int = 0  # generated candidates, N_c for each image in `kept`
    ld_gradients: int = 0  # LD's images times draws, over all steps
    raw_steps: int = 0  # steps before the first round, whose generated minibatch is the raw one; UDIM's warm-up
    domains: int = 0  # training domains

    @property
    def dataset(self) -> str:
        return self.args["dataset"]

    @property
    def algorithm(self) -> str:
        return self.args["algorithm"]


@dataclass(frozen=True)
class Request:
    """The parsed arguments of `domainfusion estimate`."""

    launcher: str
    data_dir: str
    jobs: list[dict[str, Any]]  # train arguments of the jobs that the launch would start now
    begun_or_done: int  # number of jobs that are done or begun in the sweep folder


def request(words: Sequence[str]) -> Request:
    """Parse the words after `domainfusion estimate`. They are those of `domainfusion sweep`, and --json.

    So they are the arguments of the host's sweep, or a sweep file and the arguments of the launch. The word `launch` is
    optional. Raises InputError for an unknown dataset, algorithm, launcher or hparam, for a wrong file and for missing
    arguments.
    """
    words = [word for word in words if word != "--json"]
    if words[:1] == ["launch"]:
        words = words[1:]
    file = sweep_files.read(Path(words.pop(0))) if words and not words[0].startswith("-") else None
    given = sweep_files.parser().parse_args(words)
    missing = [f"--{name}" for name in ("data_dir", "output_dir", "command_launcher") if getattr(given, name) is None]
    if missing:
        raise InputError(f"`domainfusion estimate` lacks {', '.join(missing)}: give the arguments of the sweep itself.")
    for what, names, known in (
        ("dataset", given.datasets, vars(host.datasets)),
        ("algorithm", given.algorithms, vars(host.algorithms)),
        ("launcher", [given.command_launcher], host.command_launchers.REGISTRY),
    ):
        for name in names:
            if name not in known:
                raise InputError(
                    f"The host knows no {what} {name!r}: `domainfusion estimate` takes the arguments of its sweep."
                )
    if given.hparams is not None:
        checks.check_hparams_text(given.hparams)
    jobs = [job for sweep in file.sweeps for job in sweep.jobs(words)] if file else sweep_files.jobs_of(given)
    waiting = [job.train_args for job in jobs if job.state == job.NOT_LAUNCHED]
    return Request(given.command_launcher, given.data_dir, waiting, len(jobs) - len(waiting))


def count(args: dict[str, Any], hparams: dict[str, Any], images: Sequence[int]) -> Job:
    """Count one job. images: the number of images in each environment of the dataset."""
    dataset = host.datasets.get_dataset_class(args["dataset"])
    steps = args.get("steps") or dataset.N_STEPS
    frequency = args.get("checkpoint_freq") or dataset.CHECKPOINT_FREQ
    checkpoints = len({*range(0, steps, frequency), steps - 1})
    training = [
        length for i, length in enumerate(in_splits(images, args["holdout_fraction"])) if i not in args["test_envs"]
    ]
    evaluated = sum(images)
    if hparams.get("weight_average") == "swad":  # it reads the training domains' out-splits at each checkpoint
        evaluated += sum(length for i, length in enumerate(images) if i not in args["test_envs"]) - sum(training)
    if args["algorithm"] == "AdaNPC":  # and AdaNPC the in-splits, for its memory
        evaluated += sum(training)
    plain = Job(args, hparams, steps, checkpoints, checkpoints * evaluated, raw_steps=steps, domains=len(training))
    if args["algorithm"] == "UDIM":
        return replace(plain, raw_steps=host.algorithms.UDIM.warm_up_steps(steps, hparams))
    if args["algorithm"] == "CDGA":
        hparams = host.algorithms.CDGA.completed(hparams)
    if "generation_budget" not in hparams:  # it generates no images
        return plain
    reading = with_ld_preset(hparams)
    rounds = _rounds(steps, hparams, images, args["holdout_fraction"]) if uses_generated(reading) else []
    kept = len(rounds) * sum(domain_shares(hparams["generation_budget"], training))
    if args["algorithm"] == "CDGA":  # each image once for each domain's description
        kept *= len(training) + hparams["cdga_starred"] * len(args["test_envs"])
    batch = hparams["batch_size"] * len(training)
    seen = -(-steps // hparams["ld_interval"]) * min(hparams["ld_images"] or batch, batch)
    if reading["ld_when"] == "generation":
        seen = kept
    return replace(
        plain,
        rounds=len(rounds),
        kept=kept,
        candidates=kept * (hparams["candidates"] if hparams["sampling_strategy"] else 1),
        ld_gradients=seen * hparams["ld_draws"] if hparams["lambda2"] > 0 else 0,
        raw_steps=rounds[0] if rounds else steps,
    )


def in_splits(images: Sequence[int], holdout_fraction: float) -> list[int]:
    """The lengths of the in-splits, as the host's train script cuts them."""
    return [length - int(length * holdout_fraction) for length in images]


def _rounds(steps: int, hparams: dict, images: Sequence[int], holdout_fraction: float) -> list[int]:
    """The steps at which a round of generation begins. The host's epoch is one pass over the smallest in-split."""
    steps_per_epoch = min(in_splits(images, holdout_fraction)) / hparams["batch_size"]
    return [step for step in range(steps) if round_begins(step, steps_per_epoch, hparams)]
