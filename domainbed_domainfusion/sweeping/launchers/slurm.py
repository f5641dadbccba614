"""The launcher `slurm`: a sweep as one job array, submitted by submitit.

It returns when the jobs are in the queue. They have checkpoints: at the time limit and when preempted a job writes one,
queues again and goes on. `domainfusion sweep status` shows what has become of them.
"""

import re
import shutil
import subprocess
from pathlib import Path

from ...errors import InputError
from .. import slurm_records
from ..host_scripts import command_options
from . import slurm_settings
from .slurm_job import TrainingCommand

USUAL_MAX_ARRAY_SIZE = 1001  # Slurm's default: the largest index of an array, plus one
ASKED_SECONDS = 60
MANY = 1_000_000  # how often a job may reach its time limit


def launch(commands: list[str]) -> None:
    """Submit the jobs of a sweep, except those that Slurm has in its queue already.

    Raises InputError before anything is submitted if submitit or Slurm is missing or if slurm.toml is wrong; also if
    Slurm refuses an array, and then the arrays before it stay in the queue.
    """
    if not commands:
        return
    settings = slurm_settings.read(slurm_settings.find())
    _check_tools()
    folders = {command: _job_folder(command) for command in commands}
    new = _not_queued(folders)
    if len(new) < len(commands):
        print(f"{len(commands) - len(new)} jobs are in Slurm's queue already: they are not submitted again.")
    if not new:
        return
    largest = max_array_size()
    print(f"Settings: {settings.path or 'the defaults'}.")
    for start in range(0, len(new), largest):
        ids = _submit(new[start : start + largest], folders, settings)
        print(f"Submitted {len(ids)} jobs to Slurm: {ids[0]} to {ids[-1]}.")
    sweep_folder = folders[new[0]].parent
    print(f"`domainfusion sweep status {sweep_folder}` shows how far they are.")


def max_array_size() -> int:
    """The most jobs in one array of this cluster: MaxArraySize, or Slurm's default if it cannot be asked."""
    try:
        asked = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=ASKED_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return USUAL_MAX_ARRAY_SIZE - 1
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", asked.stdout, re.MULTILINE)
    return max(1, int(found.group(1) if found else USUAL_MAX_ARRAY_SIZE) - 1)


def _submit(commands: list[str], folders: dict[str, Path], settings: slurm_settings.SlurmSettings) -> list[str]:
    """Submit the commands as one array; returns their ids in Slurm."""
    import submitit

    logs = folders[commands[0]].parent / slurm_records.FOLDER
    executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=MANY)
    executor.update_parameters(**settings.parameters())
    try:
        with executor.batch():
            jobs = [
                executor.submit(TrainingCommand(command, folders[command], settings.signal_seconds))
                for command in commands
            ]
    except submitit.core.utils.FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        where = settings.path or f"a file {slurm_settings.SETTINGS_FILE} in the current folder"
        raise InputError(
            f"Slurm refused the jobs ({lines[-1].strip()}): correct the settings in {where} and launch again."
        ) from error
    ids = [job.job_id for job in jobs]
    for command, slurm_job in zip(commands, ids):
        slurm_records.append(folders[command], slurm_records.SUBMITTED, slurm_job)
    return ids


def _not_queued(folders: dict[str, Path]) -> list[str]:
    """The commands whose job Slurm does not have in its queue, in their order."""
    last = {
        command: events[-1]["slurm_job"]
        for command, folder in folders.items()
        if (events := slurm_records.read(folder))
    }
    queued = slurm_records.queue(last.values())
    return [command for command in folders if last.get(command) not in queued]


def _job_folder(command: str) -> Path:
    folder = command_options(command).get("output_dir")
    if folder is None:
        raise InputError(f"The launcher slurm needs the job's --output_dir, which is missing in: {command}")
    return Path(folder).absolute()


def _check_tools() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise InputError(
            "The launcher slurm needs the package submitit: pip install 'domainbed-domainfusion[slurm]'."
        ) from error
    missing = [tool for tool in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(tool) is None]
    if missing:
        raise InputError(
            f"There is no Slurm on this machine ({', '.join(missing)} not found): launch on a machine of the cluster, "
            "or with --command_launcher cores."
        )
