"""`domainfusion sweep`: the host's own sweep, with its arguments on the command line or in a sweep file.

HELP lists its forms. Arguments after a file override the file's own.
"""

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_name
from ..hosting import checks, host
from . import host_scripts, mirror, sweep_files
from .launchers import slurm_settings

VERBS = ("launch", "delete_incomplete")
FILE_OPTIONS = ("--dry-run", "--check")
#: A dry run uses these where the launch's own arguments are not given. Job names depend on the data folder.
DRY_RUN_ARGUMENTS = ("--data_dir", "data", "--output_dir", "runs", "--command_launcher", "local")

HELP = """\
usage: domainfusion sweep launch|delete_incomplete ARGUMENTS
       domainfusion sweep launch FILE --data_dir D --output_dir O --command_launcher L [ARGUMENTS]
       domainfusion sweep delete_incomplete FILE --data_dir D --output_dir O --command_launcher L [ARGUMENTS]
       domainfusion sweep --dry-run FILE [ARGUMENTS]
       domainfusion sweep --check FILE [FILE ...] [--data_dir D]
       domainfusion sweep status OUT [--json] [--watch]
       domainfusion sweep mirror OUT --to tensorboard|wandb [--logs DIR] [--project NAME] [--watch]

Without a FILE this is the host's own sweep, and ARGUMENTS reach it as they are. FILE is a sweep file: one or more
sweeps as plain text, for example sweeps/pacs-resnet50.txt.

  launch FILE             runs each sweep of the file by the host's sweep, in a folder of its own below O
  delete_incomplete FILE  removes the folders of the jobs that were begun and not finished
  --dry-run FILE          prints the host's equivalent commands and all jobs; launches nothing
  --check FILE            checks every name, hparam and job count; status 0 if all files are right, else 1.
                          With --data_dir it also knows the datasets that `domainfusion data add` described there
  status OUT              what has become of each job in the output folder OUT: done, running at a step, stopped and
                          why; --watch looks again every few seconds until none runs
  mirror OUT              copies the jobs' results rows to TensorBoard or Weights & Biases, with --watch as they come

ARGUMENTS after a FILE override the file's own: `--n_hparams 1 --n_trials 1` is a cheap try."""


def sweep(words: Sequence[str]) -> int:
    """Run `domainfusion sweep <words>` and return the exit status. Raises InputError for wrong words.

    Not `sweep status`: the command line calls `status.command` itself, without importing this module.
    """
    first, rest = (words[0] if words else ""), list(words[1:])
    has_file = bool(rest) and not rest[0].startswith("-")
    for_file = first in FILE_OPTIONS or (first in VERBS and has_file)
    if for_file and {"-h", "--help"} & set(rest):
        print(HELP)
        return 0
    if first == "mirror":
        return mirror.command(rest)
    if first in FILE_OPTIONS and not has_file:
        raise InputError(
            f"`domainfusion sweep {first}` needs a sweep file: name one, for example sweeps/pacs-resnet50.txt."
        )
    if for_file:
        checks.check_attached()
        if first == "--check":
            return sweep_files.check(_files_to_check(rest))
        file, extra = Path(rest[0]), rest[1:]
        return dry_run(file, extra) if first == "--dry-run" else launch(first, file, extra)
    if first in ("-h", "--help"):
        print(f"{HELP}\n\nThe host's own help:\n", flush=True)  # before the host's process writes
    return host_scripts.run_host_script("sweep", list(words))


def _files_to_check(words: list[str]) -> list[Path]:
    parser = argparse.ArgumentParser(prog="domainfusion sweep --check")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--data_dir", help="read when the plugin is imported: `data.own_datasets`")
    return parser.parse_args(words).files


def dry_run(path: Path, extra: Sequence[str]) -> int:
    """Print, for each sweep of the file, the host's own command and the host's own list of jobs. Returns 0."""
    file = sweep_files.read(path)
    arguments = [*DRY_RUN_ARGUMENTS, *extra]
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
    """Run each sweep of the file by the host's sweep script, one after the other. Asks for confirmation once.

    The next sweep runs even if jobs of this one failed. Returns the first exit status that is not 0.
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
    if given.command_launcher == "slurm":
        settings = slurm_settings.find(beside=path.parent)
        slurm_settings.read(settings)  # a mistake in it is said before the host asks for confirmation
        if settings is not None:  # the launcher does not know where the sweep file is
            os.environ[slurm_settings.SETTINGS_VARIABLE] = str(settings)
    due = []  # the host's script takes seconds to start, and a file has up to a dozen sweeps
    for sweep in file.sweeps:
        jobs = sweep.jobs(extra)
        print(f"[{sweep.folder}] {' '.join(sweep.given(extra).algorithms)}: {_states(jobs)}")
        if any(_concerns(verb, job) for job in jobs):
            due.append(sweep)
    if not due:
        print("There is nothing to launch." if verb == "launch" else "There is nothing to delete.")
        return 0
    if not given.skip_confirmation:
        host.module("scripts.sweep").ask_for_confirmation()
        extra = [*extra, "--skip_confirmation"]
    statuses = [host_scripts.run_host_script("sweep", [verb, *sweep.argv(extra)]) for sweep in due]
    return next((status for status in statuses if status), 0)


def _concerns(verb: str, job: Any) -> bool:
    """Whether a job of the host's sweep is one that `launch` may start or take up, or `delete_incomplete` delete."""
    states = host.module("scripts.sweep").Job
    return job.state == states.INCOMPLETE or (verb == "launch" and job.state == states.NOT_LAUNCHED)


def _states(jobs: Sequence) -> str:
    """How many jobs there are, and how many in each state, as one sentence."""
    counts = Counter(job.state for job in jobs)
    sweep = host.module("scripts.sweep")
    states = (sweep.Job.DONE, sweep.Job.INCOMPLETE, sweep.Job.NOT_LAUNCHED)
    return f"{len(jobs):,} jobs: {', '.join(f'{counts[state]:,} {state.lower()}' for state in states)}."
