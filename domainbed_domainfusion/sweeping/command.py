"""`domainfusion sweep`: the host's own sweep, with its arguments on the command line or in a sweep file.

    domainfusion sweep launch --algorithms ERM …                    the host's sweep, untouched
    domainfusion sweep --dry-run FILE [arguments]                   the file's jobs and the host's equivalent commands
    domainfusion sweep --check FILE …                               are the files right?
    domainfusion sweep launch|delete_incomplete FILE arguments      each sweep of the file by the host's script

Arguments after a file come after the file's own and so override them: `--n_hparams 1 --n_trials 1` is a cheap try.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, unknown_name
from ..hosting import checks, host
from . import host_scripts, sweep_files

VERBS = ("launch", "delete_incomplete")
#: What a dry run takes for the arguments of the launch that are not given; job names depend on the data folder.
DRY_RUN = ("--data_dir", "data", "--output_dir", "runs", "--command_launcher", "local")


def sweep(words: Sequence[str]) -> int:
    """Run what the words after `domainfusion sweep` ask for; return the exit status."""
    first, rest = (words[0] if words else ""), list(words[1:])
    named = bool(rest) and not rest[0].startswith("-")
    if first in ("--dry-run", "--check"):
        if not named:
            raise InputError(
                f"`domainfusion sweep {first}` needs a sweep file: name one, for example sweeps/pacs-resnet50.txt."
            )
        checks.check_attached()
        return dry_run(Path(rest[0]), rest[1:]) if first == "--dry-run" else sweep_files.check(list(map(Path, rest)))
    if first in VERBS and named:
        checks.check_attached()
        return launch(first, Path(rest[0]), rest[1:])
    return host_scripts.run_host_script("sweep", list(words))


def dry_run(path: Path, extra: Sequence[str]) -> int:
    """Print, for each sweep of the file, the host's own command and the host's own list of jobs. Returns 0."""
    file = sweep_files.read(path)
    arguments = [*DRY_RUN, *extra]
    total = 0
    for sweep in file.sweeps:
        jobs = sweep.jobs(arguments)
        command = ["python", "-m", f"{host.NAME}.scripts.sweep", "launch", *sweep.argv(arguments)]
        print(f"[{sweep.folder}]\n{shlex.join(command)}\n")
        for job in jobs:
            print(job)
        print(f"{_states(jobs)}\n")
        total += len(jobs)
    print(
        f"{path}: {total:,} jobs in {len(file.sweeps)} {'sweep' if len(file.sweeps) == 1 else 'sweeps'}; nothing "
        "was launched."
    )
    return 0


def launch(verb: str, path: Path, extra: Sequence[str]) -> int:
    """Hand each sweep of the file to the host's sweep script, one after the other, asking once for all of them.

    A sweep with failed jobs does not keep the next one from its turn. Returns the first exit status that is not 0.
    Raises InputError before anything is launched if the file is wrong or the launch lacks an argument.
    """
    file = sweep_files.read(path)
    given = sweep_files.parser().parse_args(list(extra))
    missing = [f"--{name}" for name in ("data_dir", "output_dir", "command_launcher") if getattr(given, name) is None]
    if missing:
        raise InputError(
            f"`domainfusion sweep {verb} {path}` lacks {', '.join(missing)}: add what the host's own "
            "sweep needs as well."
        )
    if given.command_launcher not in host.command_launchers.REGISTRY:
        raise unknown_name("command launcher", given.command_launcher, host.command_launchers.REGISTRY)
    for sweep in file.sweeps:
        print(f"[{sweep.folder}] {' '.join(sweep.given(extra).algorithms)}: {_states(sweep.jobs(extra))}")
    if not given.skip_confirmation:
        host.module("scripts.sweep").ask_for_confirmation()
        extra = [*extra, "--skip_confirmation"]
    statuses = [host_scripts.run_host_script("sweep", [verb, *sweep.argv(extra)]) for sweep in file.sweeps]
    return next((status for status in statuses if status), 0)


def _states(jobs: Sequence) -> str:
    counts = Counter(job.state for job in jobs)
    sweep = host.module("scripts.sweep")
    told = [
        f"{counts[state]:,} {state.lower()}" for state in (sweep.Job.DONE, sweep.Job.INCOMPLETE, sweep.Job.NOT_LAUNCHED)
    ]
    return f"{len(jobs):,} jobs: {', '.join(told)}."
