"""`domainfusion estimate <the arguments of the host's sweep>`: what a sweep costs, before it runs.

`counting` counts exactly, without running anything. `calibration` and `measure` time a few seconds of each kind of job
under the launcher's conditions. `costs` multiplies counts by rates, and `printout` prints. `stand_ins`
replaces data and weights that are not on this machine. May import: `sweeping`, `report` (published costs), `data`,
`algorithms`, `generated`, `diffusion`, `hosting` and the ground floor.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hosting.test_time_hparams import TEST_TIME


def estimate(argv: Sequence[str]) -> int:
    """Print what `sweep launch` with these arguments would cost. Returns 0. Nothing is kept or downloaded.

    Raises InputError for arguments that the sweep would refuse as well.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before any import that reads it
    from ..hosting import checks
    from . import counting, printout

    checks.check_attached()
    request = counting.request(argv)
    with redirect_stdout(sys.stderr):  # stdout is for the result: datasets may print when they are built
        result = make_estimate(request)
    print(json.dumps(printout.as_json(result), indent=1) if "--json" in argv else printout.as_text(result))
    return 0


@dataclass(frozen=True)
class Data:
    """The number of images of one dataset of the sweep."""

    images: tuple[int, ...]  # per environment
    published: bool  # True: published numbers, because the dataset's folder is not on this machine


@dataclass(frozen=True)
class Estimate:
    """The results that `printout` prints."""

    launcher: str
    jobs: list  # counting.Job
    seconds: list  # costs.Seconds, one for each job
    begun_or_done: int  # jobs that are done or begun in the sweep folder
    data: dict[str, Data]
    conditions: Any  # calibration.Conditions
    measured: list  # calibration.GroupRates, one for each job
    wall_clock: float
    ram_bytes: int  # of the largest job's main process
    disk_bytes: int
    notes: list[str]


def make_estimate(request: Any) -> Estimate:
    """Count, calibrate and multiply. request: from `counting.request`."""
    from ..hosting.job_hparams import hparams_of
    from . import calibration, costs, counting

    data = {name: _data(name, request.data_dir) for name in dict.fromkeys(args["dataset"] for args in request.jobs)}
    jobs = [counting.count(args, hparams_of(args), data[args["dataset"]].images) for args in request.jobs]
    conditions = calibration.conditions_of(request.launcher, len(jobs))
    groups: dict[str, list] = {}
    for job in jobs:
        groups.setdefault(calibration.group_of(job), []).append(job)
    with ExitStack() as stack:
        stand_ins = StandIns(data, stack)
        points = [(name, job) for name, members in groups.items() for job in calibration.extreme_jobs(members)]
        specs = [stand_ins.spec(job, jobs) for _, job in points]
        rates = calibration.calibrate(specs, conditions)
    measured = {
        name: calibration.GroupRates([(job, rate) for (group, job), rate in zip(points, rates) if group == name])
        for name in groups
    }
    of_jobs = [measured[calibration.group_of(job)] for job in jobs]
    seconds = [costs.seconds(job, rates) for job, rates in zip(jobs, of_jobs)]
    sweep_start = max((rates.most("imports") for rates in of_jobs), default=0.0)  # imports of the sweep's own process
    return Estimate(
        request.launcher,
        jobs,
        seconds,
        request.begun_or_done,
        data,
        conditions,
        of_jobs,
        sweep_start + costs.wall_clock([part.total for part in seconds], conditions.jobs_at_a_time),
        max((costs.ram_bytes(job, rates) for job, rates in zip(jobs, of_jobs)), default=0),
        sum(costs.disk_bytes(job, rates) for job, rates in zip(jobs, of_jobs)),
        stand_ins.notes,
    )


def _data(name: str, data_dir: str) -> Data:
    """The environments' sizes: from the dataset's folder if it exists, else as published."""
    from ..data.benchmarks import BENCHMARKS
    from ..hosting import host
    from . import stand_ins

    if name in BENCHMARKS and not stand_ins.has_folder(BENCHMARKS[name], data_dir):
        return Data(BENCHMARKS[name].images, True)
    hparams = host.hparams_registry.default_hparams("ERM", name)
    dataset = host.datasets.get_dataset_class(name)(data_dir, [0], hparams)
    return Data(tuple(len(environment) for environment in dataset), False)


def _uses_ldm(algorithm: str) -> bool:
    from ..hosting.hparams import TABLES

    return any(row.name == "ldm" for row in TABLES.get(algorithm, ()))


class StandIns:
    """Makes the calibration's specs. Data and weights that are not on this machine are replaced; `notes` names them."""

    def __init__(self, data: dict[str, Data], stack: ExitStack):
        self.data = data
        self.notes: list[str] = []
        self._folder = lambda: Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._pictures: dict[str, Path] = {}
        self._ldm: Path | None = None

    def spec(self, job: Any, jobs: list) -> dict[str, Any]:
        """The spec of a job for `calibration.calibrate`. jobs: all jobs, which share the replaced data."""
        from ..hosting.held_out_ldm import with_ldm_of_run

        hparams = with_ldm_of_run(job.hparams, job.dataset, job.args["test_envs"])
        data_dir = job.args["data_dir"]
        if self.data[job.dataset].published:
            data_dir = str(self._data_dir(job.dataset, max(other.hparams["batch_size"] for other in jobs)))
        self._set_backbone(job, hparams)
        if job.algorithm in TEST_TIME:
            self._leave_out_diffusion(job, hparams)
        if hparams.get("invariant_steps"):
            self._leave_out_invariant_guidance(job, hparams)
        random_ldm = _uses_ldm(job.algorithm) and self._set_ldm(hparams)
        return {
            "dataset": job.dataset,
            "algorithm": job.algorithm,
            "test_envs": job.args["test_envs"],
            "data_dir": data_dir,
            "holdout_fraction": job.args["holdout_fraction"],
            "hparams": hparams,
            "random_ldm": random_ldm,
        }

    def _data_dir(self, name: str, batch_size: int) -> Path:
        from ..data.benchmarks import BENCHMARKS
        from .stand_ins import write_pictures

        if name not in self._pictures:
            self._pictures[name] = self._folder()
            write_pictures(BENCHMARKS[name], self._pictures[name], 2 * batch_size)
            width, height = BENCHMARKS[name].picture
            self._note(
                f"{name}: the folder {BENCHMARKS[name].folder} is not in --data_dir: its published sizes are "
                f"counted, and pictures of {width} x {height} pixels were read in the calibration."
            )
        return self._pictures[name]

    def _set_backbone(self, job: Any, hparams: dict[str, Any]) -> None:
        """Leave out pretrained weights, because speed does not depend on them.

        A backbone of our table is always built untrained. The host's own is, if its weights are not on this machine.
        """
        from ..hosting import host

        if hparams.get("backbone", "host") != "host":
            hparams["pretrained"] = False
            return
        shape = host.datasets.get_dataset_class(job.dataset).INPUT_SHAPE
        if shape is None or shape[-1] != 224 or hparams.get("vit") or hparams.get("dinov2"):
            return
        try:
            host.networks.Featurizer(shape, hparams)
        except Exception:  # the host's loaders may raise anything without a network
            name = "resnet18" if hparams["resnet18"] and not hparams["resnet50_augmix"] else "resnet50"
            hparams.update(backbone=name, pretrained=False)
            self._note(f"The weights of the host's {name} are not on this machine: it was measured untrained.")

    def _set_ldm(self, hparams: dict[str, Any]) -> bool:
        """Replace the diffusion model in `hparams` if it is not on this machine. Returns whether it was replaced."""
        from .stand_ins import ldm_is_available

        if ldm_is_available(hparams):
            return False
        if self._ldm is None:
            from ..diffusion.random_model import write_random_model

            self._ldm = write_random_model(self._folder())
        self._note(
            f"{hparams['ldm']} is not on this machine: measured on Stable Diffusion 1's full-size architecture "
            "with random weights, which takes the same time."
        )
        hparams.update(ldm=str(self._ldm), ldm_revision=None)
        return True

    def _leave_out_diffusion(self, job: Any, hparams: dict[str, Any]) -> None:
        """Measure evaluations without the diffusion model, and note what it will compute.

        Its work depends on how sure the trained classifier is, and on what is kept from one evaluation to the next.
        """
        from ..hosting import host

        work = host.algorithms.get_algorithm_class(job.algorithm).diffusion_work(hparams, job.domains)
        hparams.update(test_time_when="last", ldm="pocket", ldm_revision=None)
        if "dsi_finetune_steps" in hparams:  # its check of the memory is for the run
            hparams["dsi_finetune_steps"] = 0
        if work:
            self._note(
                f"{job.dataset} {job.algorithm}: the work of the diffusion model is not in these times and sizes. "
                f"It is {work}."
            )

    def _leave_out_invariant_guidance(self, job: Any, hparams: dict[str, Any]) -> None:
        """Measure generation without the second U-Net, and note what it adds."""
        steps, images = hparams["invariant_steps"], hparams["invariant_batch"] * job.domains
        self._note(
            f"{job.dataset} {job.algorithm}: invariant guidance is not in these times and sizes. It is {steps:,} steps "
            f"of training a second U-Net on {images} images, and twice the evaluations in generation."
        )
        hparams["invariant_steps"] = 0

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
