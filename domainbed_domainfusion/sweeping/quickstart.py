"""`domainfusion quickstart`: the whole experiment on the embedded data, by the host's own sweep."""

import json
import time
from pathlib import Path

from ..hosting.checks import check_attached
from ..pocket.digit_styles import load_images
from ..resuming import switch
from .host_scripts import run_host_script

QUICKSTART_ALGORITHMS = ("ERM", "SAM", "DomainFusion")
QUICKSTART_DATASET = "DigitStyles"
QUICKSTART_STEPS = 300  # four epochs at batch size 16
# A sweep passes its --hparams to each of its algorithms. The first three change all of them. The others set
# DomainFusion's rounds of generation, so that the sweep takes minutes on two cores. Other hparams have their defaults.
QUICKSTART_HPARAMS = {
    "batch_size": 16,
    "backbone": "resnet10t",
    "pretrained": False,
    "generation_interval": 1,
    "generation_budget": 600,
}


def quickstart(output_dir: Path, data_dir: Path | None = None, n_trials: int = 1) -> int:
    """Run the three algorithms on the four environments, print the host's table and write `report.html`.

    Finished jobs are kept and interrupted ones continued: a second run goes on after an interruption, or adds trials.
    Jobs go to `output_dir/sweep`, data to `data_dir` (default `output_dir/data`).
    Returns 0, or the sweep's status if a job failed. The page is written even then, and names the failed jobs. Only a
    sweep that never started gets no page. Raises InputError in a DomainBed checkout that is not attached.
    """
    from ..report import write

    start = time.time()
    check_attached()
    sweep_dir, data_dir = output_dir / "sweep", data_dir or output_dir / "data"
    load_images(str(data_dir))  # renders the images once, before several jobs start and each does it
    arguments = sweep_arguments(sweep_dir, data_dir, n_trials)
    if sweep_dir.exists() and switch.is_off():  # else the launch takes up incomplete jobs
        run_host_script("sweep", ["delete_incomplete", *arguments])
    status = run_host_script("sweep", ["launch", *arguments])
    if not sweep_dir.exists():
        return status
    if status == 0:
        status = run_host_script("collect_results", ["--input_dir", str(sweep_dir)])
    page = write(sweep_dir, output_dir / "report.html")[0]
    print(f"\n{page.resolve()}\nwritten after {(time.time() - start) / 60:.1f} minutes")
    return status


def sweep_arguments(sweep_dir: Path, data_dir: Path, n_trials: int = 1) -> list[str]:
    """The arguments of the host's sweep, without its verb (launch or delete_incomplete)."""
    return [
        "--algorithms",
        *QUICKSTART_ALGORITHMS,
        "--datasets",
        QUICKSTART_DATASET,
        "--single_test_envs",
        "--n_hparams",
        "1",
        "--n_trials",
        str(n_trials),
        "--steps",
        str(QUICKSTART_STEPS),
        "--hparams",
        json.dumps(QUICKSTART_HPARAMS),
        "--command_launcher",
        "cores",
        "--skip_confirmation",
        "--output_dir",
        str(sweep_dir),
        "--data_dir",
        str(data_dir),
    ]
