"""From jobs to seconds: which settings to measure, in which conditions, and what lies between them."""

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
from ..hosting.hparams import of_the_time, proportional
from ..sweeping.launchers.cores import cores_conditions
from .counting import Job

SECONDS = 3.0  # that each part of a run is repeated for


@dataclass(frozen=True)
class Rates:
    """What was measured for one setting; times in seconds."""

    imports: float  # until the host is imported
    startup: float  # until the first step could begin, imports included
    ended: float  # from the last line of the script until the process is gone
    warm_up: float  # what the first step, evaluation and generation took longer than later ones
    raw_step: float  # a step before the first round of generation, LD left out
    step: float  # a step, generation and LD left out
    evaluated: float  # per image evaluated
    saving: float  # model.pkl
    model_bytes: int
    ram_bytes: int  # peak resident memory of the main process
    loader_processes: int  # of one job, each with memory of its own
    prefetched_bytes: int  # minibatches that wait in the loader processes
    threads: int
    device: str
    gpu_bytes: int = 0  # peak allocated
    load: float = 0.0  # the diffusion model
    kept: float = 0.0  # per image kept, all its candidates included
    ld_gradient: float = 0.0  # per image and draw
    few_images: int = 0  # on how many generation and LD were measured, with few evaluations; 0: whole batches


@dataclass(frozen=True)
class Conditions:
    """How the launcher runs jobs: so many at a time, each in one of these environments."""

    environments: tuple[dict[str, str], ...]
    cluster: bool = False  # jobs go elsewhere; only their sum is known

    @property
    def beside(self) -> int:
        return len(self.environments)


def conditions_of(launcher: str, jobs: int) -> Conditions:
    """How `launcher` would run so many jobs on this machine. Raises InputError for multi_gpu without a GPU."""
    plain = dict(os.environ)
    if launcher == "cores":
        beside, environment = cores_conditions(jobs)
        return Conditions((environment,) * beside)
    if launcher == "multi_gpu":
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(i) for i in range(torch.cuda.device_count())]
        gpus = gpus and ([gpu for gpu in visible.split(",") if gpu] if visible is not None else gpus)
        if not gpus:
            raise InputError(
                "The launcher multi_gpu needs a GPU and this machine has none: give --command_launcher "
                "local to see what the sweep costs here, or run the estimate where the sweep will run."
            )
        return Conditions(tuple({**plain, "CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[: max(1, jobs)]))
    return Conditions((plain,), cluster=launcher not in ("local", "dummy"))


def group_of(job: Job) -> str:
    """Jobs of one group take the same time for a step, but for their proportional hparams (batch size, candidates)."""
    return json.dumps([job.dataset, job.algorithm, job.domains, of_the_time(job.hparams)], sort_keys=True)


def corners(jobs: Sequence[Job]) -> list[Job]:
    """The job of a group with the least of every proportional hparam and the one with the most; one if all are equal.

    Both ends of what the jobs draw are measured.
    """
    first = jobs[0]
    names = [name for name in proportional() if name in first.hparams]
    low, high = ({name: pick(job.hparams[name] for job in jobs) for name in names} for pick in (min, max))
    points = [{**first.hparams, **values} for values in ([low] if low == high else [low, high])]
    return [replace(first, hparams=point) for point in points]


class Measured:
    """The rates of one group, at any batch size and number of candidates between those measured."""

    def __init__(self, points: list[tuple[Job, Rates]]):
        self.points = points

    def rate(self, name: str, job: Job, along: str | None = None) -> float:
        """One of Rates' numbers for a job: on the line through both points along a hparam, their mean without one."""
        (low, first), (high, last) = self.points[0], self.points[-1]
        a, b = getattr(first, name), getattr(last, name)
        if along is None or low.hparams.get(along) == high.hparams.get(along):
            return (a + b) / 2
        start, end = low.hparams[along], high.hparams[along]
        return a + (b - a) * (job.hparams[along] - start) / (end - start)

    def most(self, name: str) -> Any:
        return max(getattr(rates, name) for _, rates in self.points)


def calibrate(points: Sequence[dict[str, Any]], conditions: Conditions) -> list[Rates]:
    """Measure each spec in as many processes beside each other as there will be jobs.

    A spec: dataset, data_dir, algorithm, test_envs, holdout_fraction and hparams as of a job; random_ldm: whether the
    diffusion model in them is a stand-in, whose weights are to be filled.
    Raises InputError with the process's own last line if one fails.
    """
    return [_measure(spec, conditions) for spec in tqdm(points, "calibration", disable=None, leave=False)]


def _measure(spec: dict[str, Any], conditions: Conditions) -> Rates:
    with tempfile.TemporaryFile() as log:
        started: list[Any] = [_start(spec, environment, log) for environment in conditions.environments]
        try:
            lines = [process.stdout.readline() for process in started]
            if not all(lines):
                killed = any(process.wait() == -signal.SIGKILL for process, line in zip(started, lines) if not line)
                reason = "it was killed, as the system does when memory runs out" if killed else _last(log)
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
    return _together([{**result, "ended": seconds} for result, seconds in zip(results, ended)])


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


def _together(results: list[dict[str, Any]]) -> Rates:
    """Times are means over the processes, memory is of the largest."""

    def joined(values: list) -> Any:
        if isinstance(values[0], (bool, str)):
            return values[0]
        return max(values) if isinstance(values[0], int) else statistics.fmean(values)

    return Rates(**{name: joined([result[name] for result in results]) for name in results[0]})


def _last(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").split("\n") if line.strip()]
    return lines[-1].strip() if lines else "no error message"
