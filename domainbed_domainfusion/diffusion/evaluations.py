"""How often a job evaluates the U-Net: one latent at one timestep under one condition is one evaluation. Ours.

A gradient is not counted beside its evaluation, and neither are the VAE, the text encoder, and denoising steps that
reuse the deep features of an earlier one. The number lies in the
job's folder, so that accuracies can be set beside it. It is of all processes that have trained the job: what is made
again after an interruption counts again, and images from a candidate cache do not count.
"""

import atexit
import json
import time
from pathlib import Path

from ..errors import InputError
from ..files import write_atomically

FILE = "ldm_evaluations.json"
KEY = "unet_evaluations"
SECONDS = 30  # the file is written so often, and when the process ends


class EvaluationCount:
    """`number`: evaluations of this process, and those that the folder given to `keep_in` had already."""

    def __init__(self) -> None:
        self.number = 0
        self._folder: Path | None = None
        self._saved = 0
        self._saved_at = 0.0

    def add(self, number: int) -> None:
        """So many more evaluations are made."""
        self.number += number
        if self._folder is not None and time.monotonic() - self._saved_at > SECONDS:
            self.save()

    def keep_in(self, job_folder: Path | None) -> None:
        """A run begins, and its number is kept in this folder; with None nowhere."""
        if self._folder is None and job_folder is not None:
            atexit.register(self.save)
        self._folder = None if job_folder is None else job_folder.absolute()
        self._saved_at = time.monotonic()
        self.number = self._saved = (job_folder and read(job_folder)) or 0

    def save(self) -> None:
        """Write the number, unless it has not changed. A full disk is no reason to end: the number is then missing."""
        if self._folder is None or self.number == self._saved:
            return
        self._saved, self._saved_at = self.number, time.monotonic()
        try:
            write_atomically(self._folder / FILE, json.dumps({KEY: self.number}) + "\n")
        except InputError as error:
            print(error)


def read(job_folder: Path) -> int | None:
    """The number in a job's folder; None if it has none, as a job that never evaluates the U-Net."""
    try:
        return int(json.loads((job_folder / FILE).read_text(encoding="utf-8"))[KEY])
    except (OSError, ValueError, TypeError, KeyError):
        return None


#: Of this process.
COUNT = EvaluationCount()
