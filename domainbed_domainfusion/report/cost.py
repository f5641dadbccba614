"""The cost of a sweep in the paper's units: days of one device for generation, and images generated."""

from dataclasses import dataclass

from .jobs import Job, SweepFolder, mean_evaluations, sum_over_steps

SECONDS_PER_DAY = 86400


@dataclass(frozen=True)
class Cost:
    """The cost of all jobs of one algorithm on one dataset, without evaluation. Times are in seconds."""

    dataset: str
    algorithm: str
    jobs: int
    steps: int
    training: float
    generation: float
    distillation: float
    images: float
    evaluations: float | None  # of the diffusion model's U-Net in a job, a mean; None if they were not recorded
    on_gpu: bool

    @property
    def step(self) -> float:
        """Seconds per step, generation included."""
        return self.training / self.steps

    @property
    def generation_days(self) -> float:
        """Days of one device (the GPU, or the machine's processor without one) spent on generation."""
        return self.generation / SECONDS_PER_DAY


def costs(sweep: SweepFolder) -> list[Cost]:
    """One entry per (dataset, algorithm) with result rows, sorted by name."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in sweep.jobs:
        if job.rows:
            groups.setdefault((job.args["dataset"], job.args["algorithm"]), []).append(job)
    return [_cost(dataset, algorithm, groups[dataset, algorithm]) for dataset, algorithm in sorted(groups)]


def _cost(dataset: str, algorithm: str, jobs: list[Job]) -> Cost:
    def total(key: str) -> float:
        return sum(sum_over_steps(job.rows, key) for job in jobs)

    return Cost(
        dataset,
        algorithm,
        len(jobs),
        sum(job.steps for job in jobs),
        total("step_time"),
        total("generation_seconds"),
        total("ld_seconds"),
        total("generated_images"),
        mean_evaluations(jobs),
        any(row.get("mem_gb", 0) > 0 for job in jobs for row in job.rows),
    )


def mean_over_steps(rows: list[dict], key: str) -> float:
    """The mean over all steps of a run, of a value that the host averages from row to row."""
    return sum_over_steps(rows, key) / (max(row["step"] for row in rows) + 1)
