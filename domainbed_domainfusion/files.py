"""Atomic file writing: a reader sees the old file or the new one, never half of either. And the end of a file."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import InputError

FULL_BYTES = 2**16  # less than this is free on a full disk
TAIL_BYTES = 2**16  # the last bytes of a file that `tail` reads


def write_atomically(path: str | Path, content: str | bytes | Callable[[str], None]) -> None:
    """Write `content` to a temporary file beside `path`, then rename it into place.

    `content` is text, bytes, or a function of a file name that writes that file (for libraries that save by name).
    Missing folders are made. Raises InputError if the disk is full or not writable; an old file at `path` is then
    unchanged.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        if callable(content):
            _call(content, temporary)
        else:
            Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path} ({error.strerror or error}): free some space or choose another "
            "output folder; nothing that was there before has been lost."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _call(write: Callable[[str], None], name: str) -> None:
    """Call it. On a full disk some libraries raise errors of their own; they become the OSError that it is."""
    try:
        write(name)
    except OSError:
        raise
    except Exception as error:
        if "No space left" in str(error) or shutil.disk_usage(Path(name).parent).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def tail(path: Path) -> str:
    """The end of a file as text, "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(text: str) -> str:
    """The last line that is not empty, "" if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
