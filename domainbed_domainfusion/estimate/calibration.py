"""The calibration: which settings are measured, under which conditions, and the rates between measured settings."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from tqdm import tqdm

from ..errors import InputError
from ..files import last_line
from ..hosting.hparam_effects import of_the_time, proportional
from ..sweeping.launchers.cores import cores_conditions
from ..sweeping.launchers.gpus import VISIBLE, gpus_conditions, visible_gpus
from .counting import Job

SECONDS = 3.0  # each part of a run is repeated for this long


@dataclass(frozen=True)
class Rates:
    """The measured rates of one setting. Times are in seconds."""

    imports: float  # from the process's start until the host is imported
    startup: float  # from the process's start until the first step, imports included
    ended: float  # from the script's last line until the process has ended
    warm_up: float  # extra time of the first step, evaluation and generation, compared with later ones
    raw_step: float  # a step before the first round of generation, without LD; a step of UDIM's warm-up
    step: float  # a step after the first round, without generation and LD
    evaluated: float  # per evaluated image
    saving: float  # writing model.pkl
    model_bytes: int
    ram_bytes: int  # peak resident memory of the main process
    loader_processes: int  # loader worker processes of one job, not in ram_bytes
    prefetched_bytes: int  # minibatches that the loader workers fetch ahead
    threads: int
    device: str
    gpu_bytes: int = 0  # peak allocated
    load: float = 0.0  # loading the diffusion model
    kept: float = 0.0  # per image of a round: all its candidates, the choice and the store
    ld_gradient: float = 0.0  # LD, per image and draw
    few_images: int = 0  # generation and LD were measured on this many images; 0: on whole batches


@dataclass(frozen=True)
class Conditions:
    """How the launcher runs jobs: one environment (of variables) for each job that runs at the same time."""

    environments: tuple[dict[str, str], ...]
    cluster: bool = False  # jobs run on other machines, so only the sum of their times is known

    @property
    def jobs_at_a_time(self) -> int:
        return len(self.environments)


def conditions_of(launcher: str, jobs: int) -> Conditions:
    """How `launcher` would run `jobs` jobs on this machine. Raises InputError for gpus and multi_gpu without a GPU."""
    plain = dict(os.environ)
    if launcher == "cores":
        count, environment = cores_conditions(jobs)
        return Conditions((environment,) * count)
    if launcher == "gpus":
        return Conditions(tuple(gpus_conditions(max(1, jobs))))
    if launcher == "multi_gpu":
        gpus = visible_gpus()
        if not gpus:
            raise InputError(
                "The launcher multi_gpu needs a GPU and this machine has none: give --command_launcher "
                "local to see what the sweep costs here, or run the estimate where the sweep will run."
            )
        return Conditions(tuple({**plain, VISIBLE: gpu} for gpu in gpus[: max(1, jobs)]))
    return Conditions((plain,), cluster=launcher not in ("local", "dummy"))


def group_of(job: Job) -> str:
    """The group of a job, as a string. Jobs of one group differ in speed only by their proportional hparams.

    The time is linear in these, for example in the batch size and in the number of candidates.
    """
    return json.dumps([job.dataset, job.algorithm, job.domains, of_the_time(job.hparams)], sort_keys=True)


def extreme_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The two jobs to measure for a group: all proportional hparams at their minimum, and all at their maximum.

    Minimum and maximum are over the group's jobs. If they are equal, there is one job.
    """
    first = jobs[0]
    names = [name for name in proportional() if name in first.hparams]
    low, high = ({name: pick(job.hparams[name] for job in jobs) for name in names} for pick in (min, max))
    points = [{**first.hparams, **values} for values in ([low] if low == high else [low, high])]
    return [replace(first, hparams=point) for point in points]


class GroupRates:
    """The rates of one group, interpolated between its measured jobs."""

    def __init__(self, points: list[tuple[Job, Rates]]):
        self.points = points

    def rate(self, name: str, job: Job, along: str | None = None) -> float:
        """The field `name` of Rates for a job.

        along: a proportional hparam. The rate is then on the line through both measured points along this hparam.
        Without it the rate is the mean of both points.
        """
        (low, first), (high, last) = self.points[0], self.points[-1]
        a, b = getattr(first, name), getattr(last, name)
        if along is None or low.hparams.get(along) == high.hparams.get(along):
            return (a + b) / 2
        start, end = low.hparams[along], high.hparams[along]
        return a + (b - a) * (job.hparams[along] - start) / (end - start)

    def most(self, name: str) -> Any:
        return max(getattr(rates, name) for _, rates in self.points)


def calibrate(points: Sequence[dict[str, Any]], conditions: Conditions) -> list[Rates]:
    """Measure each spec, in as many parallel processes as the launcher runs jobs at a time.

    A spec has a job's dataset, data_dir, algorithm, test_envs, holdout_fraction and hparams. random_ldm says whether
    the diffusion model is a stand-in that needs random weights. If a process fails, this raises InputError
    with the last line of its stderr.
    """
    return [_measure(spec, conditions) for spec in tqdm(points, "calibration", disable=None, leave=False)]


def _measure(spec: dict[str, Any], conditions: Conditions) -> Rates:
    with tempfile.TemporaryFile() as log:
        started: list[Any] = [_start(spec, environment, log) for environment in conditions.environments]
        try:
            lines = [process.stdout.readline() for process in started]
            if not all(lines):
                killed = any(process.wait() == -signal.SIGKILL for process, line in zip(started, lines) if not line)
                reason = "it was killed, as the system does when memory runs out" if killed else _last_line(log)
                raise InputError(f"The calibration of {spec['algorithm']} on {spec['dataset']} failed: {reason}")
            results = [json.loads(line) for line in lines]
            ended = []
            for process in started:
                process.stdin.close()
            for process in started:
                last = json.loads(process.stdout.readline() or "{}")
                process.wait()
                ended.append(time.time() - last.get("ended", time.time()))
        finally:
            for process in started:
                if process.poll() is None:
                    process.terminate()
                process.wait()
                process.stdout.close()
    return _combine([{**result, "ended": seconds} for result, seconds in zip(results, ended)])


def _start(spec: dict[str, Any], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen:
    spec = {**spec, "repeated": SECONDS, "started": time.time()}
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.measure", json.dumps(spec)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )


def _combine(results: list[dict[str, Any]]) -> Rates:
    """The rates over the parallel processes: the mean of times, the maximum of sizes and counts."""

    def combined(values: list) -> Any:
        if isinstance(values[0], (bool, str)):
            return values[0]
        return max(values) if isinstance(values[0], int) else statistics.fmean(values)

    return Rates(**{name: combined([result[name] for result in results]) for name in results[0]})


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    return last_line(log.read().decode(errors="replace")) or "no error message"
