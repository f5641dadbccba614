"""R7: the diffusion model's time in a sweep with the hparam `candidate_cache` ÷ its time in the sweep without it.

A small sweep is measured, in turns with and without the cache. A whole sweep is too long to run. Its candidates and LD
gradients are counted from the host's own list of jobs, and multiplied by the seconds of each in the small sweep. The
candidates of first rounds are counted image by image. `R7_small_sweep_counted` is the same calculation for the small
sweep; compare it with the measured `R7_small_sweep`.
"""

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from domainbed_domainfusion.data.benchmarks import BENCHMARKS
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.generated.dataset import GenerateDataset
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting.context import InSplit
from domainbed_domainfusion.hosting.job_hparams import hparams_of
from domainbed_domainfusion.pixels import PixelRange
from domainbed_domainfusion.pocket.digit_styles import labels
from domainbed_domainfusion.sweeping import sweep_files
from domainbed_domainfusion.sweeping.quickstart import QUICKSTART_HPARAMS, QUICKSTART_STEPS

from .host_run import DOMAINS, HostRun
from .models import Model
from .results import Results, Table, shown
from .step import hparams_for
from .timing import Spread, interleaved, paired_ratio

ALONE, SHARED = "every run alone", "one candidate_cache"
SMALL = list(itertools.product((0, 1), range(len(DOMAINS)), (3, 5)))  # the small sweep: trial, test environment, N_c
ROUNDS = 2  # rounds of each run of the small sweep, each with one step
BATCHES = {"tiny": 2, "pocket": 8, "sd1": 2}  # the small sweep's images per domain, in a step and in a round
PACS_STEPS = 10_020  # the paper's 120 epochs, as in sweeps/pacs-resnet50.txt


@dataclass(frozen=True)
class Run:
    """The counts of one run that decide the diffusion model's work."""

    candidates: int  # N_c
    images: frozenset[tuple[int, int]]  # its generate-dataset, as (environment, index into the environment)
    rounds: int
    ld_gradients: int


@dataclass(frozen=True)
class Work:
    """The diffusion model's work in several runs."""

    made: int  # generated candidates
    taken: int  # candidates read from the cache
    first: int  # candidates of first rounds, generated or read
    ld_gradients: int

    def seconds(self, made: float, taken: float, ld_gradient: float) -> float:
        """The time of this work. made, taken, ld_gradient: seconds of one of each."""
        return self.made * made + self.taken * taken + self.ld_gradients * ld_gradient


def run(model: Model, device: str, dtype: str, repeats: int) -> Results:
    """The suite. The whole sweep is DomainBed's protocol: 20 draws, 3 trials, every test environment."""
    small: list[Run] = []
    seconds: dict[str, list] = {ALONE: [], SHARED: []}

    def method(name: str) -> None:
        small[:], took = small_sweep(model, dtype, device, shared=name == SHARED)
        seconds[name].append(took)

    interleaved({name: partial(method, name) for name in seconds}, repeats, device, "sweep", warm_up=0)
    works = {
        f"{name}, {sweep}": work(runs, shared=name == SHARED)
        for sweep, runs in (("small", small), ("whole", whole_sweep(model)))
        for name in seconds
    }
    rates = [unit_seconds(small, *pair) for pair in zip(seconds[ALONE], seconds[SHARED])]

    def counted(sweep: str) -> Spread:
        return Spread.of(
            [works[f"{SHARED}, {sweep}"].seconds(*each) / works[f"{ALONE}, {sweep}"].seconds(*each) for each in rates]
        )

    results = Results(
        "sweep", model.name, {"device": device, "dtype": dtype, "whole sweep": model.dataset, "repeats": repeats}
    )
    results.seconds = {name: [sum(took) for took in each] for name, each in seconds.items()}
    results.ratios = {
        "R7": counted("whole"),
        "R7_small_sweep_counted": counted("small"),
        "R7_small_sweep": paired_ratio(results.seconds[SHARED], results.seconds[ALONE]),
    }
    results.tables = [_table(works)]
    results.notes = [
        "Seconds of a candidate that is made, of one from the folder, of an LD gradient: "
        + ", ".join(shown(Spread.of(list(values)), 4) for values in zip(*rates))
        + "."
    ]
    return results


def work(runs: list[Run], shared: bool) -> Work:
    """The work of runs one after another.

    shared: they share a cache, so a first-round candidate is generated only if no earlier run has generated it.
    """
    generating = [each for each in runs if each.rounds]
    all_rounds = sum(len(each.images) * each.candidates * each.rounds for each in generating)
    first = sum(len(each.images) * each.candidates for each in generating)
    most: dict[tuple[int, int], int] = {}  # image → the largest N_c of the runs that use it
    for each in generating:
        most.update((image, max(each.candidates, most.get(image, 0))) for image in each.images)
    taken = first - sum(most.values()) if shared else 0
    return Work(all_rounds - taken, taken, first, sum(each.ld_gradients for each in runs))


def small_sweep(model: Model, dtype: str, device: str, shared: bool) -> tuple[list[Run], tuple[float, float, float]]:
    """Run the small sweep. Returns its runs, and the seconds of first rounds, of later rounds, and of LD."""
    batch, runs, first, later, distillation = BATCHES[model.name], [], 0.0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for trial, test_env, candidates in SMALL:
            hparams = {
                **hparams_for(model, dtype),
                "batch_size": batch,
                "generation_interval": 1,
                "ld_images": 2,
                "candidates": candidates,
                "candidate_cache": folder if shared else None,
            }
            host_run = HostRun("DomainFusion", model, hparams, device, trial, test_env)
            updates = host_run.steps(ROUNDS)
            images = frozenset(
                (environment, index)
                for environment, split in zip(host_run.environments, host_run.in_splits)
                for index in split.keys
            )
            if any(update["generated_images"] != len(images) for update in updates):
                raise AssertionError("every step of the small sweep must begin with a round of all images")
            runs.append(Run(candidates, images, ROUNDS, ROUNDS * hparams["ld_images"]))
            first += updates[0]["generation_seconds"]
            later += sum(update["generation_seconds"] for update in updates[1:])
            distillation += sum(update["ld_seconds"] for update in updates)
    return runs, (first, later, distillation)


def unit_seconds(runs: list[Run], alone: tuple, shared: tuple) -> tuple[float, float, float]:
    """Seconds of one generated candidate, of one cached candidate and of one LD gradient.

    alone, shared: the seconds from `small_sweep` without and with the cache.
    """
    made = (alone[0] + alone[1]) / work(runs, shared=False).made
    done = work(runs, shared=True)
    made_first = done.first - done.taken
    return made, (shared[0] - made_first * made) / done.taken, alone[2] / done.ld_gradients


def whole_sweep(model: Model) -> list[Run]:
    """DomainFusion's jobs in the host's own list: PACS at the paper's length, or DigitStyles as in the quickstart."""
    if model.dataset == "PACS":
        images, steps, hparams = BENCHMARKS["PACS"].images, PACS_STEPS, {}
    else:
        images, steps, hparams = (len(labels()),) * 4, QUICKSTART_STEPS, QUICKSTART_HPARAMS
    words = [
        "--algorithms",
        "DomainFusion",
        "--datasets",
        model.dataset,
        "--single_test_envs",
        "--n_hparams",
        "20",
        "--n_trials",
        "3",
        "--steps",
        str(steps),
        "--hparams",
        json.dumps(hparams),
        "--data_dir",
        "",
        "--output_dir",
        "",
    ]
    return [_counted(job.train_args, images) for job in sweep_files.jobs_of(sweep_files.parser().parse_args(words))]


def _counted(args: dict, images: Sequence[int]) -> Run:
    """The counts of one job, without running it. Its splits and its generate-dataset are those of the run."""
    misc, hparams = host.lib.misc, hparams_of(args)
    in_splits = []
    for i, count in enumerate(images):
        _, split = misc.split_dataset(
            range(count), int(count * args["holdout_fraction"]), misc.seed_hash(args["trial_seed"], i)
        )
        if i not in args["test_envs"]:
            in_splits.append(InSplit(i, str(i), split, range(count), list(split.keys), 1))
    chosen = GenerateDataset(
        in_splits,
        hparams["image_size"],
        PixelRange((3, 32, 32)),
        args["seed"],
        hparams["generation_budget"],
        hparams["candidates"],
    ).keys
    job = counting.count(args, hparams, images)
    return Run(
        hparams["candidates"],
        frozenset((in_splits[split].environment, index) for split, index in chosen),
        job.rounds,
        job.ld_gradients,
    )


def _table(works: dict[str, Work]) -> Table:
    table = Table(
        ["runs", "candidates generated", "of first rounds, from the folder", "of first rounds in all", "LD gradients"]
    )
    for name, each in works.items():
        table.rows.append([name, *(f"{count:,}" for count in (each.made, each.taken, each.first, each.ld_gradients))])
    return table
