"""The content of the page, without markup: one `Content` from a sweep folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hosting import host
from . import published, results
from .by_training import TrainedOn, by_training_environments
from .cost import Cost, costs
from .curves import ChartRow, training_curves
from .gaps import Gap, find_gaps
from .jobs import Job, SweepFolder
from .pictures import Gallery, read_gallery
from .results import Choice, Row, Table


@dataclass(frozen=True)
class Comparison:
    """One method's published accuracy on a dataset beside ours, in percent; None where there is no number."""

    method: str
    backbone: str
    published: float | None
    ours: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus published, in percentage points."""
        return None if self.published is None or self.ours is None else self.ours - self.published


@dataclass(frozen=True)
class Chosen:
    """The choice of training-domain validation for one cell and trial, and the chosen job."""

    algorithm: str
    environment: str
    choice: Choice
    job: Job | None


@dataclass(frozen=True)
class Hparams:
    """The hparams of an algorithm's chosen runs: the values that all of them share, and the names that vary."""

    algorithm: str
    common: dict[str, Any]
    varying: tuple[str, ...]
    chosen: tuple[Chosen, ...]


@dataclass(frozen=True)
class RunGallery:
    """The gallery of one chosen run."""

    algorithm: str
    environment: str
    job: Job
    gallery: Gallery


@dataclass(frozen=True)
class DatasetPart:
    """Everything about one dataset; `tables[0]` is training-domain validation."""

    name: str
    tables: tuple[Table, ...]
    by_training: tuple[TrainedOn, ...]
    comparisons: tuple[Comparison, ...]
    hparams: tuple[Hparams, ...]
    curves: tuple[ChartRow, ...]
    galleries: tuple[RunGallery, ...]
    costs: tuple[Cost, ...]
    styles: dict[str, int]
    notes: tuple[str, ...]

    @property
    def anchor(self) -> str:
        """The name as an id of the page."""
        return re.sub(r"\W+", "-", self.name).lower()

    @property
    def ranking(self) -> list[Row]:
        """The algorithms with a number for every environment, best average first."""
        whole = [(row.average, row) for row in self.tables[0].rows if row.average is not None]
        return [row for _, row in sorted(whole, key=lambda pair: -pair[0])]


@dataclass(frozen=True)
class Content:
    """The whole page. `unfinished_folders` are the names of job folders without a `done` mark."""

    sweep: SweepFolder
    host: str
    datasets: tuple[DatasetPart, ...]
    gaps: tuple[Gap, ...]

    @property
    def unfinished_folders(self) -> set[str]:
        return {job.folder.name for job in self.sweep.unfinished}


def content_of(sweep: SweepFolder) -> Content:
    """Read everything that the page shows. The numbers come from the host's own selection methods."""
    records = sweep.records()
    by_dataset: dict[str, list[Table]] = {}
    for table in results.tables(records) if len(records) else ():
        by_dataset.setdefault(table.dataset, []).append(table)
    parts = tuple(_dataset_part(sweep, name, tuple(tables)) for name, tables in by_dataset.items())
    return Content(sweep, host.NAME, parts, tuple(find_gaps(sweep)))


def _dataset_part(sweep: SweepFolder, name: str, tables: tuple[Table, ...]) -> DatasetPart:
    styles = {row.algorithm: number for number, row in enumerate(tables[0].rows)}
    chosen = _chosen(sweep, tables[0])
    return DatasetPart(
        name,
        tables,
        tuple(by_training_environments(_with_rows(sweep, name), tables[0].environments, list(styles))),
        tuple(_comparisons(name, tables[0], chosen)),
        tuple(_hparams(chosen)),
        tuple(training_curves(tables[0].environments, _runs(tables[0], chosen), styles)),
        tuple(_galleries(chosen)),
        tuple(sorted((cost for cost in costs(sweep) if cost.dataset == name), key=lambda cost: styles[cost.algorithm])),
        styles,
        tuple(_notes(sweep, name)),
    )


def _chosen(sweep: SweepFolder, table: Table) -> list[Chosen]:
    jobs = {job.folder.name: job for job in sweep.jobs}
    return [
        Chosen(row.algorithm, environment, choice, jobs.get(Path(choice.output_dir).name))
        for row in table.rows
        for environment, cell in zip(table.environments, row.cells)
        if cell is not None
        for choice in cell.choices
    ]


def _runs(table: Table, chosen: list[Chosen]) -> dict[int, dict[str, Job]]:
    """The job to draw, per test environment and algorithm: the chosen job of the first trial."""
    runs: dict[int, dict[str, Job]] = {}
    for one in sorted(chosen, key=lambda one: one.choice.trial_seed):
        if one.job is not None:
            runs.setdefault(table.environments.index(one.environment), {}).setdefault(one.algorithm, one.job)
    order = [row.algorithm for row in table.rows]
    return {env: {name: jobs[name] for name in order if name in jobs} for env, jobs in runs.items()}


def _comparisons(dataset: str, table: Table, chosen: list[Chosen]) -> list[Comparison]:
    """Every method with a published number on the dataset, and every method that ran, for the backbones that ran."""
    if dataset not in published.DATASETS:
        return []
    backbones = {one.algorithm: published.backbone_of(one.choice.hparams) for one in chosen}
    ours = {(row.algorithm, backbones.get(row.algorithm, published.RESNET50)): row.average for row in table.rows}
    wanted = [
        (method, backbone)
        for backbone in dict.fromkeys(backbone for _, backbone in ours)
        for method in published.ACCURACY[backbone]
    ]
    pairs = dict.fromkeys([*wanted, *ours])
    made = [
        Comparison(method, backbone, published.accuracy(backbone, method, dataset), ours.get((method, backbone)))
        for method, backbone in pairs
    ]
    shown = [(one.ours if one.published is None else one.published, one) for one in made]
    ranked = [(number, one) for number, one in shown if number is not None]
    return [one for _, one in sorted(ranked, key=lambda pair: -pair[0])]


def _hparams(chosen: list[Chosen]) -> list[Hparams]:
    made = []
    for algorithm in dict.fromkeys(one.algorithm for one in chosen):
        runs = tuple(one for one in chosen if one.algorithm == algorithm)
        names = sorted({name for one in runs for name in one.choice.hparams})
        varying = tuple(name for name in names if len({str(one.choice.hparams.get(name)) for one in runs}) > 1)
        common = {name: runs[0].choice.hparams[name] for name in names if name not in varying}
        made.append(Hparams(algorithm, common, varying, runs))
    return made


def _galleries(chosen: list[Chosen]) -> list[RunGallery]:
    """The gallery of the first trial's chosen run, per algorithm and test environment."""
    made, seen = [], set()
    for one in sorted(chosen, key=lambda one: one.choice.trial_seed):
        if one.job is None or (one.algorithm, one.environment) in seen:
            continue
        gallery = read_gallery(one.job.folder)
        if gallery is not None:
            seen.add((one.algorithm, one.environment))
            made.append(RunGallery(one.algorithm, one.environment, one.job, gallery))
    return made


def _notes(sweep: SweepFolder, dataset: str) -> list[str]:
    """Warnings for a reader who compares the rows of a dataset."""
    jobs = _with_rows(sweep, dataset)
    steps: dict[int, int] = {}
    for job in jobs:
        if job.done and _learns(job):
            steps[job.steps] = steps.get(job.steps, 0) + 1
    notes = []
    if len(steps) > 1:
        counts = ", ".join(f"{count} of {number:,}" for number, count in sorted(steps.items()))
        notes.append(f"Finished runs differ in their number of steps ({counts} steps): rows are not on equal terms.")
    if not any(len(job.args["test_envs"]) == 1 for job in jobs):
        notes.append(
            "Every run has two or more test environments: the host's training-domain validation and oracle need runs "
            "with one."
        )
    return notes


def _with_rows(sweep: SweepFolder, dataset: str) -> list[Job]:
    return [job for job in sweep.jobs if job.rows and job.args["dataset"] == dataset]


def _learns(job: Job) -> bool:
    """Whether the algorithm reports a loss. A zero-shot classifier reports none; its number of steps means nothing."""
    return any("loss" in name for name in job.rows[-1])
