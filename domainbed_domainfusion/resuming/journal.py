"""The journal: an append-only file of what `update` and the evaluations returned, one line each.

A line is the CRC-32 of a JSON object, a space and the object. A checkpoint holds the length and the SHA-256 of the
journal at its time, and a resumed run reads and keeps that much. So a line that was torn by a kill is never read.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from ..errors import InputError


class Journal:
    """Writes the file. `length` in bytes and `digest()` describe all that it holds."""

    def __init__(self, path: Path, length: int = 0):
        """Open the file, cut to its first `length` bytes. Raises InputError if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "r+b" if length else "w+b")
            self._digest = hashlib.sha256(self._file.read(length))
            self._file.truncate(length)
            self._file.seek(length)
        except OSError as error:
            raise InputError(
                f"Cannot write {path} ({error.strerror or error}): free some space, choose another output folder, or "
                "train without DOMAINFUSION_RESUME."
            ) from error
        self.path, self.length = path, length

    def append(self, record: dict[str, Any]) -> None:
        """Add a record of plain JSON values. Raises OSError if the disk is full."""
        text = json.dumps(record, separators=(",", ":"))
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)
        self.length += len(line)

    def digest(self) -> str:
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Have the system write the file to the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path, length: int, digest: str) -> list[dict[str, Any]]:
    """The records in the first `length` bytes. Raises ValueError if they are not those that were written."""
    try:
        with path.open("rb") as file:
            content = file.read(length)
    except OSError as error:
        raise ValueError(f"its {path.name} cannot be read ({error.strerror or error})") from error
    if len(content) != length or hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"its {path.name} does not hold what was written")
    return [json.loads(line[9:]) for line in content.splitlines()]
