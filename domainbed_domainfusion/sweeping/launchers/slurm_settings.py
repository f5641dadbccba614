"""The settings of the launcher `slurm`: slurm.toml, with a default for everything that it leaves out."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib

SETTINGS_VARIABLE = "DOMAINFUSION_SLURM"
SETTINGS_FILE = "slurm.toml"
#: What Slurm takes as a time limit: minutes, minutes:seconds, hours:minutes:seconds, and the same after days-.
TIMES = (
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
LONGEST_MINUTES = 366 * 24 * 60


@dataclass(frozen=True)
class SlurmSettings:
    """What a job asks of Slurm. Names and values of sbatch, unless said otherwise."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | int = "24:00:00"  # the limit; at the limit a job writes a checkpoint and queues again
    gpus: int = 1  # for each job; 0 for a cluster without GPUs
    cpus: int = 8  # for each job; DomainBed starts eight loader workers
    memory: str = "32G"
    array_parallelism: int = 256  # how many jobs of a sweep may run at a time
    signal_seconds: int = 120  # how long before the limit a job is told to write its checkpoint
    setup: tuple[str, ...] = ()  # shell lines before the job, such as `module load cuda`
    sbatch: Mapping[str, str | int | bool] | None = None  # any other option of sbatch
    path: Path | None = None  # the file; None if there is none

    @property
    def minutes(self) -> int:
        """The time limit, rounded up to whole minutes."""
        minutes = time_in_minutes(self.time)
        assert minutes is not None, self.time
        return minutes

    def parameters(self) -> dict[str, Any]:
        """The same as the parameters of `submitit.SlurmExecutor`."""
        given = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint")}
        return {
            **{name: value for name, value in given.items() if value is not None},
            **({"gpus_per_node": self.gpus} if self.gpus else {}),
            "job_name": "domainfusion",
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.signal_seconds,
            "setup": list(self.setup),
            # Since Slurm 22.05 srun no longer takes over the number of cores from sbatch.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "additional_parameters": {"requeue": True, **(self.sbatch or {})},
        }


def find(beside: Path | None = None) -> Path | None:
    """The settings file: named by DOMAINFUSION_SLURM, or slurm.toml beside a sweep file, or in the current folder.

    Raises InputError if the variable names a file that does not exist.
    """
    named = os.environ.get(SETTINGS_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise InputError(f"{SETTINGS_VARIABLE} names {named}, which is no file: correct it, or unset it.")
        return Path(named)
    folders = [*([beside] if beside is not None else []), Path()]
    return next((folder / SETTINGS_FILE for folder in folders if (folder / SETTINGS_FILE).is_file()), None)


def read(path: Path | None) -> SlurmSettings:
    """The settings in a file; the defaults for None. Raises InputError for unknown keys and impossible values."""
    if path is None:
        return SlurmSettings()
    if sys.version_info >= (3, 11):
        toml: Any = tomllib
    else:
        try:
            import tomli as toml
        except ImportError as error:
            raise InputError(f"{path} cannot be read without the package tomli: pip install tomli.") from error
    try:
        values = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): make it readable, or move it away.") from error
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError
        raise InputError(f"{path} is not TOML ({' '.join(str(error).split())}): correct it.") from error
    for key, value in values.items():
        if key not in CHECKS:
            raise InputError(f"{path}: {unknown_name('setting', key, CHECKS)}")
        expected, is_right = CHECKS[key]
        if not is_right(value):
            raise InputError(f"{path}: {key} = {value!r} is not {expected}: correct it, or leave it out.")
    if "setup" in values:
        values["setup"] = tuple(values["setup"])
    settings = SlurmSettings(**values, path=path)
    if 60 * settings.minutes <= settings.signal_seconds:
        raise InputError(
            f"{path}: the time limit of {settings.minutes} minutes is not longer than signal_seconds = "
            f"{settings.signal_seconds}: a job would have no time to train. Raise time or lower signal_seconds."
        )
    return settings


def time_in_minutes(value: Any) -> int | None:
    """A time limit as whole minutes, rounded up; None if Slurm would not take it."""
    if _is_whole_number(value):
        return value if 0 < value <= LONGEST_MINUTES else None
    if not isinstance(value, str):
        return None
    match = next((found for form in TIMES if (found := re.fullmatch(form, value, re.ASCII))), None)
    if match is None or len(value) > 20:
        return None
    parts = {name: int(number or 0) for name, number in match.groupdict().items()}
    minutes = parts.get("days", 0) * 24 * 60 + parts.get("hours", 0) * 60 + parts.get("minutes", 0)
    minutes += -(-parts.get("seconds", 0) // 60)
    return minutes if 0 < minutes <= LONGEST_MINUTES else None


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one_line(value: Any) -> bool:
    """Text that stays on its line in the batch script."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _within(lowest: int, highest: int) -> tuple[str, Callable[[Any], bool]]:
    return (
        f"a whole number from {lowest} to {highest:,}",
        lambda value: _is_whole_number(value) and lowest <= value <= highest,
    )


def _is_options(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(r"[a-z][a-z0-9-]*", key, re.ASCII)
        and (each is True or _is_whole_number(each) or _is_one_line(each))
        for key, each in value.items()
    )


_NAME = ("a name in quotes", _is_one_line)
#: Each key of the file: what its value has to be, in words and as a test.
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "partition": _NAME,
    "account": _NAME,
    "qos": _NAME,
    "constraint": _NAME,
    "time": (
        'a time limit, such as "24:00:00", "2-00:00:00" or 90 (minutes)',
        lambda v: time_in_minutes(v) is not None,
    ),
    "gpus": _within(0, 64),
    "cpus": _within(1, 1024),
    "memory": (
        'an amount of memory, such as "32G"',
        lambda value: isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,8}[KMGT]B?", value, re.ASCII) is not None,
    ),
    "array_parallelism": _within(1, 100_000),
    "signal_seconds": _within(10, 3600),
    "setup": (
        "a list of shell lines",
        lambda value: isinstance(value, list) and all(_is_one_line(line) for line in value),
    ),
    "sbatch": ('a table of sbatch\'s long options, such as { exclude = "node7", exclusive = true }', _is_options),
}
