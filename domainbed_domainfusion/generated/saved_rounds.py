"""Rounds of a run's generate-dataset, saved in its job folder, so that a restarted job does not generate them again.

    generated/rounds/run.json                         the run's identity, and the sources of the images
    generated/rounds/round-001/part-000.safetensors   up to IMAGES_PER_PART images with their keys, labels and choices
    generated/rounds/round-001/round.json             written last: it marks a complete round

Without checkpoints (`resuming`) an interrupted job begins at step 0 again. A restarted run with the same identity reads
the saved parts, and its result is the same as without the interruption. A part is used only if it comes from the same
run, round and step, and from the same pixels. This helps if a cluster requeues the job's command. It does not help
after the host's `sweep delete_incomplete`, because that removes the job folder together with the saved rounds.
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

from ..digests import tensors_digest
from ..errors import InputError
from ..files import write_atomically

FORMAT = 1
IMAGES_PER_PART = 512  # images in a file, the most that an interruption loses
FIELDS = ("images", "environment", "index", "label", "content", "style")
SEEDS = "seeds"  # an optional field: the seeds, if the candidates are shared by runs


@dataclass(frozen=True)
class Part:
    """Some images of one round, in the order in which they were generated."""

    images: torch.Tensor  # (n, 3, S, S) uint8
    labels: torch.Tensor  # (n,) int64
    content: torch.Tensor  # (n,) int64, index of the candidate that gave the content
    style: torch.Tensor  # (n,) int64, index of the candidate that gave the style
    seconds: float  # generation time


@dataclass(frozen=True)
class Inputs:
    """The inputs from which a part is generated."""

    number: int  # the round, from 1
    step: int
    part: int  # its index in the round
    environments: list[int]
    indices: list[int]  # into the environments
    images: torch.Tensor  # (n, 3, S, S) uint8, as they were before this round
    labels: torch.Tensor  # (n,) int64
    seeds: list[list[int]] | None = None  # (n × N_c), if runs share these candidates; None: the run's own seeds

    def digest(self) -> str:
        keys = torch.tensor([self.environments, self.indices])
        return tensors_digest({"images": self.images, "labels": self.labels, "keys": keys})


class SavedRounds:
    """Writes the rounds of one run, and reads those that the same run wrote before it was interrupted.

    Args:
        job_folder: the run's output folder.
        identity: everything that the generated images depend on, as plain JSON values; see `identity.run_identity`.
        sources: the names that `generate --run` needs, as plain JSON values; see `identity.sources_of`.
        keep: "all" rounds, or only the "last". With "all" an interrupted run resumes without generating again.
        spare: complete rounds that keep "last" leaves beside the last one. A run with checkpoints needs one, because
            its last checkpoint may be older than its last round.
        classifier: returns the digest of θ's current state. If a saved part has another digest, one line is printed and
            the part is used: sums on a GPU are not repeatable bit for bit.

    Rounds of a run with another identity are moved to another folder, with one printed line.
    A damaged part is generated again, with one printed line.
    """

    def __init__(
        self,
        job_folder: str,
        identity: dict[str, Any],
        sources: dict[str, Any],
        keep: str,
        classifier: Callable[[], str],
        spare: int = 0,
    ):
        self.folder = Path(job_folder, "generated", "rounds")
        self.keep, self.classifier, self.spare = keep, classifier, spare
        self._run_digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._writes = True
        self._classifier_difference_printed = False
        self._classifier_digest: tuple[int, str] = (
            0,
            "",
        )  # (round, θ's digest in it); θ does not change within a round
        self._set_aside_others(identity)
        write_atomically(
            self.folder / "run.json", json.dumps({"format": FORMAT, "identity": identity, "sources": sources}, indent=1)
        )

    def check_space(self, rounds: int, images: int, size: int, beside: int = 0) -> None:
        """Raise InputError if `rounds` rounds do not fit on the disk. Called before anything is generated.

        Parts that are already saved are not counted again. beside: bytes on this disk for the image store.
        """
        round_bytes = images * (3 * size * size + 64)
        # with "last": a round is complete before an earlier one is deleted
        last_bytes = round_bytes * min(rounds, 2 + self.spare)
        needed = round_bytes * rounds if self.keep == "all" else last_bytes
        needed -= sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        needed += beside
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"Saving the generated images ({rounds} rounds of {images}) takes {needed / 1e9:.1f} GB "
                f"more, but {self.folder} has {free / 1e9:.1f} GB free: free some space, or set the "
                f'hparam save_generated to "last" ({last_bytes / 1e9:.1f} GB) or "none".'
            )

    def read(self, inputs: Inputs) -> Part | None:
        """The saved part for these inputs, or None. If a file exists and is not used, one line says why."""
        path = self._path(inputs.number, inputs.part)
        if not path.exists():
            return None
        try:
            tensors, metadata = read_part(path)
        except ValueError as damage:
            print(f"{path} {damage}: its images are generated again.")
            return None
        if metadata["made"] != self._inputs_record(inputs):
            print(f"{path} was made from other images or at another step: its images are generated again.")
            return None
        self._compare_classifier(metadata["classifier"], inputs)
        return Part(
            tensors["images"], tensors["label"], tensors["content"], tensors["style"], float(metadata["seconds"])
        )

    def write(self, inputs: Inputs, part: Part) -> None:
        """Save a part. If the disk is full, one sentence is printed and the run goes on without saving."""
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
            "made": self._inputs_record(inputs),
            "classifier": self._classifier_digest_in(inputs.number),
            "seconds": str(part.seconds),
            "digest": tensors_digest(tensors),
        }
        self._write(self._path(inputs.number, inputs.part), safetensors.torch.save(tensors, metadata))

    def finish(self, number: int, step: int, parts: int, images: int) -> None:
        """Mark a round as complete. With keep "last", delete the earlier rounds."""
        folder = self._path(number, 0).parent
        record = {"round": number, "step": step, "parts": parts, "images": images}
        self._write(folder / "round.json", json.dumps(record))
        if self.keep == "last" and self._writes:
            self._delete_before(number - self.spare)

    def delete_spare(self) -> None:
        """The run has ended: with keep "last", delete all rounds but the last one."""
        complete = [_round_number(path) for path in _round_folders(self.folder) if (path / "round.json").is_file()]
        if self.keep == "last" and complete:
            self._delete_before(max(complete))

    def images_and_labels(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """((n, 3, S, S) uint8, (n,) labels) of each part of a complete round of this run, in the order of the rows.

        Raises InputError if the round has not been saved whole or is another run's.
        """
        folder = self._path(number, 0).parent
        try:
            parts = json.loads((folder / "round.json").read_text())["parts"]
            for part in range(parts):
                tensors, metadata = read_part(self._path(number, part))
                if json.loads(metadata["made"])[:2] != [self._run_digest, number]:
                    raise ValueError("is another run's")
                yield tensors["images"], tensors["label"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"The run continues with the images of round {number}, but {folder} is not whole ({error}): put it "
                "back, or delete the job's folder to train from the beginning."
            ) from error

    @property
    def all_saved(self) -> bool:
        """Whether nothing has been lost so far because the disk was full."""
        return self._writes

    def _delete_before(self, number: int) -> None:
        for other in _round_folders(self.folder):
            if _round_number(other) < number:
                shutil.rmtree(other)

    def _path(self, number: int, part: int) -> Path:
        return self.folder / f"round-{number:03d}" / f"part-{part:03d}.safetensors"

    def _inputs_record(self, inputs: Inputs) -> str:
        return json.dumps([self._run_digest, inputs.number, inputs.step, inputs.part, inputs.digest()])

    def _write(self, path: Path, content: Any) -> None:
        if not self._writes:
            return
        try:
            write_atomically(path, content)
        except InputError as error:
            self._writes = False
            print(f"{error} The run goes on; what it generates from here on is not saved.")

    def _classifier_digest_in(self, number: int) -> str:
        if self._classifier_digest[0] != number:
            self._classifier_digest = (number, self.classifier())
        return self._classifier_digest[1]

    def _compare_classifier(self, saved: str, inputs: Inputs) -> None:
        if saved != self._classifier_digest_in(inputs.number) and not self._classifier_difference_printed:
            self._classifier_difference_printed = True
            print(
                f"At step {inputs.step} the classifier is not bit for bit the one that chose the saved images, as "
                "happens where a device's sums are not repeatable: the saved images are used all the same."
            )

    def _set_aside_others(self, identity: dict[str, Any]) -> None:
        """Move the rounds of another run to a folder of a new name, so that they are neither used nor lost."""
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
    """The saved rounds of a run, read-only."""

    folder: Path
    identity: dict[str, Any]
    sources: dict[str, Any]
    rounds: dict[int, dict[str, int]]  # complete rounds only: number → content of round.json

    @classmethod
    def open(cls, job_folder: Path) -> "SavedRun":
        """Read a job folder. Raises InputError if it has no complete round, damaged files or another format."""
        folder = Path(job_folder, "generated", "rounds")
        if not (folder / "run.json").is_file():
            raise InputError(
                f"{job_folder} holds no saved generated images: give the folder of a DomainFusion job "
                'that was trained with --hparams \'{"save_generated": "all"}\' (or "last").'
            )
        try:
            run = json.loads((folder / "run.json").read_text())
            rounds = {
                _round_number(path): json.loads((path / "round.json").read_text())
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
        """The tensors of each part of a round, by the names in FIELDS; also SEEDS if the part has them.

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
    """A part's tensors and metadata. Raises ValueError, with the reason, if it is missing or its digest differs."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = (*FIELDS, SEEDS) if SEEDS in file.keys() else FIELDS  # noqa: SIM118 - not a dict
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError("is missing, damaged or only partly there") from error
    if metadata.get("digest") != tensors_digest(tensors):
        raise ValueError("does not hold what was written")
    return tensors, metadata


def _round_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())


def _round_number(round_folder: Path) -> int:
    return int(round_folder.name.removeprefix("round-"))


def _difference(other: dict, identity: dict) -> str:
    """The first difference between two identities, as "lr: 0.001 there, 0.0005 here"."""
    for group in sorted(set(other) | set(identity)):
        there, here = other.get(group), json.loads(json.dumps(identity.get(group)))
        if there == here:
            continue
        if not (isinstance(there, dict) and isinstance(here, dict)):
            return f"{group}: {there} there, {here} here"
        name = next(name for name in sorted(set(there) | set(here)) if there.get(name) != here.get(name))
        return f"{name}: {json.dumps(there.get(name))} there, {json.dumps(here.get(name))} here"
    return "it differs"
