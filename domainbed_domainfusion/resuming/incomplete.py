"""`sweep launch` started again: the jobs that were begun and not finished, and that can go on.

The host's sweep launches only jobs whose folder does not exist. Its launchers are in a registry, and `taking_up` wraps
them there: what it launches besides are the incomplete jobs of the same sweep. Jobs that are done stay as they are.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hosting import context, host
from . import job_lock, switch
from .own_state import RESUME_FOLDER

Launcher = Callable[[list[str]], None]


def can_continue(job_folder: Path) -> bool:
    """Whether an incomplete job can be started again in its folder, and no process trains it now.

    It trained with checkpoints, or its folder is empty, because its launcher ended before its turn. A job whose run had
    no checkpoints stays: starting it would mix its old rows with new ones.
    """
    if (job_folder / "done").exists() or not job_folder.is_dir():
        return False
    resume = job_folder / RESUME_FOLDER
    return not any(job_folder.iterdir()) or (resume.is_dir() and not job_lock.is_held(resume))


def taking_up(launcher: Launcher, jobs: Callable[[], list[Any]]) -> Launcher:
    """A launcher that also starts the incomplete jobs of the sweep.

    jobs: makes the sweep's jobs as the host's `Job`s, with their folders and commands.
    """

    @functools.wraps(launcher)
    def wrapped(commands: list[str]) -> None:
        new = set(commands)
        again = [job.command_str for job in jobs() if job.command_str not in new and can_continue(Path(job.output_dir))]
        if again:
            print(f"{len(again)} incomplete jobs are taken up again.")
        launcher([*commands, *again])

    return wrapped


def take_up_incomplete(jobs: Callable[[], list[Any]], always: tuple[str, ...]) -> None:
    """In the host's sweep script: wrap its launchers, if DOMAINFUSION_RESUME asks for it, and those named in `always`.

    `always` are launchers that turn resuming on themselves. DOMAINFUSION_RESUME=off turns all of it off.
    """
    if context.running_script() != "sweep":
        return
    registry = host.command_launchers.REGISTRY
    on = switch.minutes() is not None
    for name in list(registry):
        if name != "dummy" and (on or (name in always and not switch.is_off())):
            registry[name] = taking_up(registry[name], jobs)


def sweep_arguments() -> list[str]:
    """The arguments of the sweep script in this process, without its verb."""
    return [word for word in sys.argv[1:] if word not in ("launch", "delete_incomplete")]
