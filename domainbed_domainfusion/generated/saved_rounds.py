"""Rounds of a run's generate-dataset, saved in its job folder: what was generated once is not generated again.

    generated/rounds/run.json                         who made them: the run's identity; and the sources of the images
    generated/rounds/round-001/part-000.safetensors   up to PART images with their keys, labels and choices
    generated/rounds/round-001/round.json             written last: the round is whole

The host starts an interrupted job again at step 0. A run with the same identity takes the saved parts in place of
generating them, and ends as if it had not been interrupted: a part is used only if it was made by the same run, for the
same round and step, from the same pixels. That helps where a cluster requeues the job's own command. It does not help
after the host's `sweep delete_incomplete`, which removes the job folder and the saved rounds with it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import safe_open

from ..errors import InputError
from ..files import write_atomically
from .digests import tensors_digest

FORMAT = 1
PART = 512  # images in a file: an interruption loses no more than these
FIELDS = ("images", "environment", "index", "label", "content", "style")
SEEDS = "seeds"  # a field of parts whose seeds do not follow from the run's seed


@dataclass(frozen=True)
class Part:
    """Some images of one round, in the order in which they were generated."""

    images: torch.Tensor  # (n, 3, S, S) uint8
    labels: torch.Tensor  # (n,) int64
    content: torch.Tensor  # (n,) int64, the candidate that gave the content
    style: torch.Tensor  # (n,) int64, the candidate that gave the style
    seconds: float  # that it took to generate them


@dataclass(frozen=True)
class Inputs:
    """What a part is made from: by whom, when, and the pixels."""

    number: int  # the round, from 1
    step: int
    part: int  # its place in the round
    environments: list[int]
    indices: list[int]  # into the environments
    images: torch.Tensor  # (n, 3, S, S) uint8, the versions before this round
    labels: torch.Tensor  # (n,) int64
    seeds: list[list[int]] | None = None  # (n × N_c) of candidates that runs share; None: the run's own

    def digest(self) -> str:
        keys = torch.tensor([self.environments, self.indices])
        return tensors_digest({"images": self.images, "labels": self.labels, "keys": keys})


class SavedRounds:
    """Writes the rounds of one run, and reads those that the same run wrote before it was interrupted.

    Args:
        job_folder: the run's output folder.
        identity: all that decides what is generated, as plain JSON values; see `identity.run_identity`.
        sources: what `generate --run` needs to name the images; plain JSON values.
        keep: "all" rounds (an interrupted run then resumes), or the "last" (the dataset as it ended).
        classifier: θ's digest at the moment; a difference is said, not refused, as sums on a GPU are not repeatable.

    A save of another identity is set aside with one line. A damaged part is generated again with one line.
    """

    def __init__(
        self,
        job_folder: str,
        identity: dict[str, Any],
        sources: dict[str, Any],
        keep: str,
        classifier: Callable[[], str],
    ):
        self.folder = Path(job_folder, "generated", "rounds")
        self.keep, self.classifier = keep, classifier
        self._run = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._writes = True
        self._said_classifier = False
        self._digest_at: tuple[int, str] = (0, "")  # θ's digest in the round at hand: no round changes θ
        self._set_aside_others(identity)
        write_atomically(
            self.folder / "run.json", json.dumps({"format": FORMAT, "identity": identity, "sources": sources}, indent=1)
        )

    def check_space(self, rounds: int, images: int, size: int, beside: int = 0) -> None:
        """Raise InputError, before anything is generated, if `rounds` rounds will not fit beside what is there.

        beside: bytes that the run will need on this disk for the generate-dataset itself.
        """
        a_round = images * (3 * size * size + 64)
        most = a_round * min(rounds, 2)  # with "last": it is whole before the one before goes
        needed = a_round * rounds if self.keep == "all" else most
        needed -= sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        needed += beside
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"Saving the generated images ({rounds} rounds of {images}) takes {needed / 1e9:.1f} GB "
                f"more, but {self.folder} has {free / 1e9:.1f} GB free: free some space, or set the "
                f'hparam save_generated to "last" ({most / 1e9:.1f} GB) or "none".'
            )

    def read(self, inputs: Inputs) -> Part | None:
        """The part that was made from these inputs, or None; says in one line why a file that is there is not used."""
        path = self._path(inputs.number, inputs.part)
        if not path.exists():
            return None
        try:
            tensors, metadata = read_part(path)
        except ValueError as damage:
            print(f"{path} {damage}: its images are generated again.")
            return None
        if metadata["made"] != self._made(inputs):
            print(f"{path} was made from other images or at another step: its images are generated again.")
            return None
        self._compare_classifier(metadata["classifier"], inputs)
        return Part(
            tensors["images"], tensors["label"], tensors["content"], tensors["style"], float(metadata["seconds"])
        )

    def write(self, inputs: Inputs, part: Part) -> None:
        """Save a part. When the disk is full this says so in one sentence and the run goes on without saving."""
        tensors = {
            "images": part.images,
            "environment": torch.tensor(inputs.environments),
            "index": torch.tensor(inputs.indices),
            "label": part.labels,
            "content": part.content,
            "style": part.style,
        }
        if inputs.seeds is not None:
            tensors[SEEDS] = torch.tensor(inputs.seeds)
        metadata = {
            "made": self._made(inputs),
            "classifier": self._classifier_in(inputs.number),
            "seconds": str(part.seconds),
            "digest": tensors_digest(tensors),
        }
        self._write(self._path(inputs.number, inputs.part), safetensors.torch.save(tensors, metadata))

    def finish(self, number: int, step: int, parts: int, images: int) -> None:
        """Mark a round as whole; with keep "last", earlier ones go."""
        folder = self._path(number, 0).parent
        record = {"round": number, "step": step, "parts": parts, "images": images}
        self._write(folder / "round.json", json.dumps(record))
        if self.keep == "last" and self._writes:
            for other in _round_folders(self.folder):
                if _number(other) < number:
                    shutil.rmtree(other)

    def _path(self, number: int, part: int) -> Path:
        return self.folder / f"round-{number:03d}" / f"part-{part:03d}.safetensors"

    def _made(self, inputs: Inputs) -> str:
        return json.dumps([self._run, inputs.number, inputs.step, inputs.part, inputs.digest()])

    def _write(self, path: Path, content: Any) -> None:
        if not self._writes:
            return
        try:
            write_atomically(path, content)
        except InputError as error:
            self._writes = False
            print(f"{error} The run goes on; what it generates from here on is not saved.")

    def _classifier_in(self, number: int) -> str:
        if self._digest_at[0] != number:
            self._digest_at = (number, self.classifier())
        return self._digest_at[1]

    def _compare_classifier(self, saved: str, inputs: Inputs) -> None:
        if saved != self._classifier_in(inputs.number) and not self._said_classifier:
            self._said_classifier = True
            print(
                f"At step {inputs.step} the classifier is not bit for bit the one that chose the saved images, as "
                "happens where a device's sums are not repeatable: the saved images are used all the same."
            )

    def _set_aside_others(self, identity: dict[str, Any]) -> None:
        """Move what another run saved here to a name of its own: nothing that was made is lost or mixed up."""
        if not self.folder.exists():
            return
        try:
            other = json.loads((self.folder / "run.json").read_text())["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            other = None
        if other == json.loads(json.dumps(identity)):
            return
        number = 1
        while (aside := self.folder.with_name(f"rounds-set-aside-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        why = "have no readable run.json" if other is None else f"are another run's ({_difference(other, identity)})"
        print(f"The generated images in {self.folder} {why}: they are not used, and lie in {aside.name} now.")


@dataclass(frozen=True)
class SavedRun:
    """What a run saved, for reading only.

    Raises InputError where there is nothing, or nothing whole.
    """

    folder: Path
    identity: dict[str, Any]
    sources: dict[str, Any]
    rounds: dict[int, dict[str, int]]  # whole ones: number → round.json

    @classmethod
    def open(cls, job_folder: Path) -> "SavedRun":
        folder = Path(job_folder, "generated", "rounds")
        if not (folder / "run.json").is_file():
            raise InputError(
                f"{job_folder} holds no saved generated images: give the folder of a DomainFusion job "
                'that was trained with --hparams \'{"save_generated": "all"}\' (or "last").'
            )
        try:
            run = json.loads((folder / "run.json").read_text())
            rounds = {
                _number(path): json.loads((path / "round.json").read_text())
                for path in _round_folders(folder)
                if (path / "round.json").is_file()
            }
        except ValueError as error:
            raise InputError(
                f"The saved rounds in {folder} are damaged ({error}): run the job again, which makes them anew."
            ) from error
        if run.get("format") != FORMAT:
            raise InputError(
                f"The saved rounds in {folder} have the format {run.get('format')}, but this version "
                f"reads {FORMAT}: read them with the version that wrote them."
            )
        if not rounds:
            raise InputError(f"{folder} holds no whole round yet: wait for the first, or run the job's command again.")
        return cls(folder, run["identity"], run["sources"], rounds)

    def parts(self, number: int) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors of each part of a round, by the names in FIELDS, and SEEDS where the part has them.

        Raises InputError for a damaged part.
        """
        for part in range(self.rounds[number]["parts"]):
            path = self.folder / f"round-{number:03d}" / f"part-{part:03d}.safetensors"
            try:
                yield read_part(path)[0]
            except ValueError as damage:
                raise InputError(
                    f"{path} {damage}: delete it and run the job's command again, which makes it anew."
                ) from damage


def read_part(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A part's tensors and metadata; ValueError, with the reason, unless they are what was written."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = (*FIELDS, SEEDS) if SEEDS in file.keys() else FIELDS  # noqa: SIM118 - no dict
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError("is missing, damaged or only partly there") from error
    if metadata.get("digest") != tensors_digest(tensors):
        raise ValueError("does not hold what was written")
    return tensors, metadata


def _round_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())


def _number(round_folder: Path) -> int:
    return int(round_folder.name.removeprefix("round-"))


def _difference(other: dict, identity: dict) -> str:
    """The first thing in which two identities differ, as "lr: 0.001 there, 0.0005 here"."""
    for group in sorted(set(other) | set(identity)):
        there, here = other.get(group), json.loads(json.dumps(identity.get(group)))
        if there == here:
            continue
        if not (isinstance(there, dict) and isinstance(here, dict)):
            return f"{group}: {there} there, {here} here"
        name = next(name for name in sorted(set(there) | set(here)) if there.get(name) != here.get(name))
        return f"{name}: {json.dumps(there.get(name))} there, {json.dumps(here.get(name))} here"
    return "it differs"
