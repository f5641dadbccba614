"""Jobs of the host's train script as processes: run, killed, started again, and compared bit by bit."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from domainbed_domainfusion.hosting import host

from .. import forks
from . import tiny_folder

#: Columns that depend on the clock.
WALL_TIMES = ("step_time", "mem_gb", "generation_seconds", "ld_seconds")


class Runner:
    """Runs jobs in forks of one process that has imported the slow libraries (`tests.forks`)."""

    def __init__(self) -> None:
        self._forks = forks.shared()

    def start(self, job: Path, data: Path, algorithm: str, moment: str = "none", resume: str = "0.0", **hparams) -> int:
        """Start a job that is killed at `moment` (see `kill_at`); its process number.

        resume: the value of DOMAINFUSION_RESUME. With "0.0" every update is followed by a checkpoint.
        """
        arguments = tiny_folder.train_arguments(data, job, algorithm, **hparams)
        return self._forks.start(
            "tests.resuming.kill_at",
            moment,
            f"{host.NAME}.scripts.train",
            *arguments,
            environment={"DOMAINFUSION_RESUME": resume},
        )

    def wait(self) -> tuple[int, str]:
        """(exit status, negative for a signal; all that was printed) of the job that was started last."""
        ended = self._forks.wait()
        return ended.returncode, ended.stdout + ended.stderr

    def run(self, *arguments, **options) -> tuple[int, str]:
        """`start` and `wait`."""
        self.start(*arguments, **options)
        return self.wait()


def rows(job: Path) -> list[dict]:
    """The rows without wall times; `args` without the job's folder."""
    found = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
    for row in found:
        row["args"].pop("output_dir")
    return [{name: value for name, value in row.items() if name not in WALL_TIMES} for row in found]


def differences(one: Path, other: Path, models: Sequence[str] | None = None) -> list[str]:
    """What differs between the folders of two jobs that are done; an empty list if nothing does."""
    found = []
    if not (one / "done").exists() or not (other / "done").exists():
        found.append("done")
    if json.dumps(rows(one)) != json.dumps(rows(other)):
        found.append("results.jsonl")
    names = {path.name for path in [*one.glob("model*.pkl"), *other.glob("model*.pkl")]}
    found += [name for name in sorted(names) if not _equal_models(one / name, other / name)]
    if _generated(one) != _generated(other):
        found.append("generated")
    return found


def _equal_models(one: Path, other: Path) -> bool:
    if not one.exists() or not other.exists():
        return False
    states = [torch.load(path, weights_only=False)["model_dict"] for path in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def _generated(job: Path) -> dict[str, bytes]:
    """The pictures, the gallery's index and the images of the saved rounds, by their paths."""
    found = {}
    for path in sorted((job / "generated").rglob("*")):
        if path.suffix == ".png" or path.name in ("gallery.json", "round.json"):
            found[str(path.relative_to(job))] = path.read_bytes()
        if path.suffix == ".safetensors":
            from domainbed_domainfusion.generated.saved_rounds import read_part

            images = read_part(path)[0]["images"]
            found[str(path.relative_to(job))] = images.numpy().tobytes()
    return found
