"""The costs of jobs, from their counts and the measured rates: seconds, wall clock, memory, disk."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..generated.image_store import is_on_disk, store_bytes
from .calibration import GroupRates
from .counting import Job

LINE_BYTES = 3000  # a line of results.jsonl, mostly args and hparams
SHUFFLES = 200  # the host's sweep shuffles its jobs; the wall clock is a mean over this many orders


@dataclass(frozen=True)
class Seconds:
    """The time of one job or of several, by its parts, in seconds."""

    starting: float  # imports, data, diffusion model, and the end of the process
    training: float  # steps without generation and LD
    generation: float
    distillation: float
    evaluation: float
    saving: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    @classmethod
    def sum(cls, parts: Sequence["Seconds"]) -> "Seconds":
        return cls(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)})


def seconds(job: Job, measured: GroupRates) -> Seconds:
    """The time of one job."""

    def rate(name, along=None):
        return measured.rate(name, job, along)

    return Seconds(
        starting=rate("startup") + rate("warm_up") + rate("load") + rate("ended"),
        training=(
            job.raw_steps * rate("raw_step", "batch_size") + (job.steps - job.raw_steps) * rate("step", "batch_size")
        ),
        generation=job.kept * rate("kept", "candidates"),
        distillation=job.ld_gradients * rate("ld_gradient"),
        evaluation=job.evaluated * rate("evaluated"),
        saving=rate("saving"),
    )


def wall_clock(totals: Sequence[float], jobs_at_a_time: int) -> float:
    """Seconds from the first job's start to the last job's end, as the mean over random orders of the jobs.

    totals: seconds of each job. `jobs_at_a_time` jobs run at a time, and the next starts when one of them ends.
    """
    order, ends = np.random.RandomState(0), []
    for _ in range(SHUFFLES if jobs_at_a_time > 1 else 1):
        places = np.zeros(jobs_at_a_time)
        for i in order.permutation(len(totals)):
            places[places.argmin()] += totals[i]
        ends.append(places.max())
    return float(np.mean(ends))


def ram_bytes(job: Job, measured: GroupRates) -> int:
    """Memory of the main process: the measured peak, and the generate-dataset if it lies in memory."""
    images, size = _stored(job)
    return measured.most("ram_bytes") + (0 if is_on_disk(images, size) else store_bytes(images, size))


def _stored(job: Job) -> tuple[int, int]:
    """The number of images in the generate-dataset, and their side in pixels."""
    return (job.kept // job.rounds, job.hparams["image_size"]) if job.rounds else (0, 0)


def disk_bytes(job: Job, measured: GroupRates) -> int:
    """Disk space of model.pkl, results.jsonl, saved rounds and gallery.

    The gallery is an upper bound: its PNGs are counted as uncompressed. A generate-dataset that is too large for memory
    is a file while the job runs, and is counted too.
    """
    total = measured.most("model_bytes") + job.checkpoints * LINE_BYTES
    if job.rounds:
        saved = {"none": 0, "last": min(job.rounds, 2), "all": job.rounds}[job.hparams["save_generated"]]
        pictures = job.hparams["gallery"] * job.domains * (job.rounds + 1)
        total += (saved * job.kept // job.rounds + pictures) * 3 * job.hparams["image_size"] ** 2
    images, size = _stored(job)
    return int(total) + (store_bytes(images, size) if is_on_disk(images, size) else 0)
