"""Results that are kept: a sweep folder as one text file, one line per job, with what its tables and charts need.

A line is a JSON object {"args": …, "hparams": …, "environments": ["A", …], "ldm_evaluations": …,
"training_ldm_seconds": …, "rows": [{"step": …, "env0_in_acc": …, …}, …]}; the evaluations of the U-Net and the seconds
are missing if there were none. `read_sweep` reads such a file as it reads a folder. Other times, memory, checkpoints
and the machine's paths are left out; no number is rounded.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import write_atomically
from .results import environment_names

if TYPE_CHECKING:
    from .jobs import Job, SweepFolder

KEPT = re.compile(r"step|epoch|env\d+_(in|out)_acc|(raw_|generated_)?loss|ld_\w+|confidence|generated_images")
NOT_KEPT = ("ld_seconds",)
LEFT_OUT_ARGS = ("data_dir",)
SHARED = ("environments", "ldm_evaluations", "training_ldm_seconds")  # of a line, which each of its rows gets


def write_kept(sweep: "SweepFolder", output: Path) -> None:
    """Write the sweep's lines to `output`, in an order that depends on the jobs' arguments alone.

    Raises InputError if a job is unfinished or a line of it is damaged: results that are kept should be whole.
    """
    if sweep.unfinished or sweep.damage:
        what = sweep.damage[0] if sweep.damage else f"{sweep.unfinished[0].name} is unfinished."
        raise InputError(f"{sweep.path} is not whole, so it is not kept: {what}")
    records = sweep.records()
    names = {dataset: environment_names(dataset, records) for dataset in {job.args["dataset"] for job in sweep.jobs}}
    jobs = sorted(sweep.jobs, key=lambda job: (job.args["algorithm"], job.args["test_envs"], job.args["trial_seed"]))
    write_atomically(output, "".join(f"{json.dumps(_line(job, names), sort_keys=True)}\n" for job in jobs))


def _line(job: "Job", names: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    args = {name: value for name, value in job.args.items() if name not in LEFT_OUT_ARGS}
    args["output_dir"] = job.folder.name
    rows = [
        {name: value for name, value in row.items() if KEPT.fullmatch(name) and name not in NOT_KEPT}
        for row in job.rows
    ]
    line = {"args": args, "hparams": job.rows[0].get("hparams", {}), "environments": names[args["dataset"]]}
    for name in ("ldm_evaluations", "training_ldm_seconds"):
        work = getattr(job, name)
        if work is not None:
            line[name] = work
    return {**line, "rows": rows}


def kept_jobs(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """(name of the job's folder, its result rows) of each line of a kept file. Raises InputError for a damaged file."""
    jobs = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
            shared = {"args": line["args"], "hparams": line["hparams"]}
            shared.update((name, line[name]) for name in SHARED if name in line)
            jobs.append((shared["args"]["output_dir"], [{**row, **shared} for row in line["rows"]]))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number} is no kept result ({error!r}): give a sweep's folder, or a file that "
                "`domainfusion keep` wrote."
            ) from error
    return jobs
