"""One process at a time trains a job: a lock on a file in the job's folder."""

import fcntl
import os
from pathlib import Path

from ..errors import InputError

NAME = "lock"


class JobLock:
    """Held from construction until the process ends, also when it is killed: the system releases it.

    It is a record lock (`lockf`), not `flock`: forked loader workers do not inherit it, so a worker that outlives a
    killed run does not hold its job. Raises InputError if another process holds it or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / NAME, "a+")
        except OSError as error:
            raise InputError(
                f"Cannot write in {folder} ({error.strerror or error}): choose another output folder, or train without "
                "DOMAINFUSION_RESUME."
            ) from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(
                f"The job in {folder.parent} is being trained already ({holder}): wait until it ends, or stop it."
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def is_held(folder: Path) -> bool:
    """Whether another process trains the job whose lock lies in `folder`."""
    path = folder / NAME
    if not path.is_file():
        return False
    with open(path, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
