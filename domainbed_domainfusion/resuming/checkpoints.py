"""The checkpoints of a job: two files each, written atomically and with checksums; the last two are kept.

    resume/checkpoint-000120.safetensors   the tensors
    resume/checkpoint-000120.json          the rest, the SHA-256 of the tensors, and its own; written last

The number is that of the updates that have been made.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ..digests import tensors_digest
from ..errors import InputError
from ..files import write_atomically

FORMAT = 2
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after `updates` updates. content: plain JSON values; tensors: what it refers to."""

    updates: int
    content: dict[str, Any]
    tensors: Mapping[str, Tensor]


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and delete those before the last KEPT. Raises InputError if the disk is full."""
    tensors_file, json_file = _paths(folder, checkpoint.updates)
    with ThreadPoolExecutor(1) as beside:  # neither hashing nor writing holds the other up
        digest = beside.submit(tensors_digest, checkpoint.tensors)
        write_atomically(tensors_file, lambda name: safetensors.torch.save_file(dict(checkpoint.tensors), name))
    record = {
        "format": FORMAT,
        "updates": checkpoint.updates,
        "tensors_sha256": digest.result(),
        "content": checkpoint.content,
    }
    text = json.dumps(record)
    write_atomically(json_file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    for number in _numbers(folder)[:-KEPT]:
        delete(folder, number)


def delete(folder: Path, updates: int) -> None:
    for path in reversed(_paths(folder, updates)):
        path.unlink(missing_ok=True)


def newest_first(folder: Path) -> Iterator[Checkpoint]:
    """The checkpoints that can be read. One that is damaged is named in a printed line and passed over."""
    for number in reversed(_numbers(folder)):
        try:
            yield _read(folder, number)
        except ValueError as damage:
            report_damage(folder, number, str(damage))


def report_damage(folder: Path, updates: int, damage: str) -> None:
    print(f"The checkpoint {_paths(folder, updates)[1]} is damaged ({damage}): the one before it is used.")


def check_space(folder: Path, size: int) -> None:
    """Raise InputError unless the disk has room for the checkpoints of a run, each of `size` bytes."""
    needed = (KEPT + 1) * size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The checkpoints of this job take {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free: free "
            "some space, choose another output folder, or train without DOMAINFUSION_RESUME."
        )


def _read(folder: Path, number: int) -> Checkpoint:
    tensors_file, json_file = _paths(folder, number)
    try:
        digest, _, text = json_file.read_text(encoding="utf-8").partition("\n")
        content = tensors_file.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError("one of its files cannot be read") from error
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("its JSON file does not hold what was written")
    record = json.loads(text)
    if record["format"] != FORMAT:
        raise ValueError(f"it has the format {record['format']}, and this version reads {FORMAT}")
    try:
        tensors = safetensors.torch.load(content)
        damaged = tensors_digest(tensors) != record["tensors_sha256"]
    except Exception:  # a damaged header raises many kinds of error
        damaged = True
    if damaged:
        raise ValueError("its safetensors file does not hold what was written")
    return Checkpoint(record["updates"], record["content"], tensors)


def _paths(folder: Path, updates: int) -> tuple[Path, Path]:
    stem = folder / f"checkpoint-{updates:06d}"
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def _numbers(folder: Path) -> list[int]:
    """The checkpoints whose JSON file is there, the oldest first."""
    return sorted(int(path.stem.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*.json"))
