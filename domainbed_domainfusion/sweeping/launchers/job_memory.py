"""How much memory the jobs of a sweep take: a guess before they run, and the peaks of those that ran."""

import os
import re
from collections.abc import Iterable
from typing import Any

import psutil
import torch

from ...diffusion.memory import free_memory
from ...diffusion.source import EMBEDDED, files_used, resolve_source
from ...errors import InputError
from ...hosting.job_hparams import hparams_of

MEMORY_VARIABLE = "DOMAINFUSION_JOB_MEMORY"
GIB = 1024**3
UNITS = {"K": 1024, "M": 1024**2, "G": GIB, "T": 1024 * GIB}
#: The guess for a job: its process, its loader workers and its classifier; and what the diffusion model's weights take
#: while they are read, with the activations of the largest image.
BASE_BYTES = 4 * GIB
TIMES_THE_WEIGHTS = 3
MARGIN = 1.1  # on what was seen, since it is only looked at now and then
STABLE_DIFFUSION_BYTES = 4 * GIB  # of the weights in float32, for a model that is not on this machine yet


def asked_bytes() -> int | None:
    """DOMAINFUSION_JOB_MEMORY: the bytes that a job takes, written as 12G or 900M; None if it is not set.

    Raises InputError for anything else.
    """
    text = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([KMGT])B?", text, re.ASCII | re.IGNORECASE)
    if match is None or float(match.group(1)) == 0:
        raise InputError(
            f"{MEMORY_VARIABLE}={text!r} is not an amount of memory: set it to what one job takes, such as 12G, or "
            "unset it."
        )
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def guessed_bytes(options: dict[str, str]) -> int:
    """A guess of a job's memory from the options of its command, on the safe side.

    4 GiB, and three times the weights of its diffusion model if it has one. An algorithm or a model that is not known
    is for the job itself to refuse; here it counts as one without a diffusion model.
    """
    return BASE_BYTES + TIMES_THE_WEIGHTS * _weights_bytes(options)


class JobMemory:
    """What a job takes, by its kind: the algorithm and the dataset.

    In this order: what DOMAINFUSION_JOB_MEMORY says; the largest amount that a job of the kind was seen to take, and a
    tenth; the guess. Raises InputError if the variable is not an amount of memory.
    """

    def __init__(self) -> None:
        self._asked = asked_bytes()
        self._guesses: dict[tuple[str, str], int] = {}
        self._peaks: dict[tuple[str, str], int] = {}

    def expected(self, options: dict[str, str]) -> int:
        """The bytes that a job with these options takes at its peak."""
        if self._asked is not None:
            return self._asked
        kind = _kind(options)
        if kind in self._peaks:
            return int(MARGIN * self._peaks[kind])
        if kind not in self._guesses:
            self._guesses[kind] = guessed_bytes(options)
        return self._guesses[kind]

    def seen(self, options: dict[str, str], taken: int, began: bool) -> None:
        """Note that a job has taken so many bytes. began: it has a results row, so it has trained and evaluated.

        Before that a job has not shown what it takes, and only an amount above the expected one counts.
        """
        if began or taken > self.expected(options):
            self._peaks[_kind(options)] = max(self._peaks.get(_kind(options), 0), taken)

    def fits(self, options: dict[str, str], running: Iterable[tuple[dict[str, str], int]]) -> bool:
        """Whether the free memory holds one more job beside the running ones, each given with what it takes now.

        What the running ones will still take is not free. Where the free memory is not known, everything fits.
        """
        free = free_memory(torch.device("cpu"))
        reserved = sum(max(0, self.expected(each) - taken) for each, taken in running)
        return free is None or self.expected(options) <= free - reserved


def taken_bytes(process_id: int) -> int:
    """The memory of a process and all below it. A page that several of them share counts once, where Linux tells."""
    try:
        top = psutil.Process(process_id)
        tree = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(map(_own_bytes, tree))


def _own_bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return getattr(full, "pss", full.uss)
    except psutil.Error:  # it has ended, or belongs to another user
        return 0


def _kind(options: dict[str, str]) -> tuple[str, str]:
    return options.get("algorithm", ""), options.get("dataset", "")


def _weights_bytes(options: dict[str, str]) -> int:
    """The size of the files of the job's diffusion model; 0 if it has none."""
    hparams = _hparams(options)
    source = hparams.get("ldm")
    if not isinstance(source, str):
        return 0
    if source not in EMBEDDED and not os.path.exists(os.path.expanduser(source)):
        return STABLE_DIFFUSION_BYTES
    try:
        return sum(file.stat().st_size for file in files_used(resolve_source(source)))
    except (InputError, OSError):
        return STABLE_DIFFUSION_BYTES


def _hparams(options: dict[str, str]) -> dict[str, Any]:
    if not {"algorithm", "dataset"} <= set(options):
        return {}
    try:
        numbers = {name: int(options.get(name, "0")) for name in ("hparams_seed", "trial_seed")}
        return hparams_of({**options, **numbers})
    except (ValueError, TypeError, KeyError):  # what is wrong with them, the job says
        return {}
