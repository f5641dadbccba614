"""results.jsonl of a resumed run: each row once, those of the first part as they were written then."""

import json
from pathlib import Path
from typing import Any

from ..files import write_atomically

#: Columns of wall time and memory, which no two runs share. `args` names folders, which may have been moved.
NOT_COMPARED = ("step_time", "mem_gb", "args")


class RecordedRows:
    """The rows of steps before `updates - 1` stay; what was written after the checkpoint is cut off.

    The replayed part writes its rows anew, behind the recorded ones. `drop_replayed` compares and removes them. So a
    reader, or a kill, finds every row at any moment.
    """

    def __init__(self, path: Path, updates: int):
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        self._rows: dict[int, dict[str, Any]] = {}
        kept = b""
        for line in lines:
            row = _row(line)
            if row is None or row["step"] >= updates - 1 or row["step"] in self._rows:
                break
            self._rows[row["step"]] = row
            kept += line
        self._length = len(kept)
        if lines:
            self._cut()

    def drop_replayed(self) -> str | None:
        """Remove the rows that the host has written again. Returns what differs, as "step 300, loss", or None."""
        if not self._path.is_file() or self._path.stat().st_size <= self._length:
            return None
        with self._path.open("rb") as file:
            file.seek(self._length)
            again = file.read().splitlines(keepends=True)
        for line in again:
            row = _row(line)
            recorded = self._rows.get(row["step"]) if row else None
            if row is None or recorded is None:  # a row that the file had lost
                self._length += len(line)
                continue
            for name in sorted(set(row) | set(recorded)):
                if name not in NOT_COMPARED and not _equal(row.get(name), recorded.get(name)):
                    return f"step {row['step']}, {name}"
            self._cut()
        return None

    def amend(self, step: int, step_time: float) -> None:
        """Put the right step_time (seconds) into the last row, if it is that of `step`."""
        *others, last = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else [b""]
        row = _row(last)
        if row is not None and row["step"] == step:
            text = json.dumps({**row, "step_time": step_time}, sort_keys=True)
            write_atomically(self._path, b"".join([*others, f"{text}\n".encode()]))

    def _cut(self) -> None:
        with self._path.open("r+b") as file:
            file.truncate(self._length)


def _row(line: bytes) -> dict[str, Any] | None:
    """A whole row, or None for a torn one."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _equal(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # NaN equals NaN
