"""Kills and signals at every kind of moment; `make test-resume` runs this."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming.job_lock import JobLock
from domainbed_domainfusion.sweeping import host_scripts

from ..forks import ROOT
from . import jobs, tiny_folder

#: Twelve updates, 30 evaluations, five rows, six saves, eleven checkpoints, twelve batches in four rounds.
MOMENTS = [
    "start:1",
    "update:1",
    "update:7",
    "update:12",
    "evaluation:4",
    "evaluation:15",
    "evaluation:30",
    "row:1",
    "row:3",
    "row:5",
    "checkpoint:1",
    "checkpoint:6",
    "checkpoint:11",
    "save:2",
    "save:6",
]
ALGORITHMS = ["ERM", "SAM", "AugMix"]


def resumed(runner, data, job, algorithm, **hparams):
    status, printed = runner.run(job, data, algorithm, **hparams)
    assert status == 0, printed
    return printed


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_once(runner, data, uninterrupted, tmp_path, moment):
    assert runner.run(tmp_path, data, "SAM", moment)[0] == -9
    resumed(runner, data, tmp_path, "SAM")
    assert jobs.differences(uninterrupted("SAM"), tmp_path) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_twice_once_in_the_replay(runner, data, uninterrupted, tmp_path, algorithm):
    assert runner.run(tmp_path, data, algorithm, "update:8")[0] == -9
    assert runner.run(tmp_path, data, algorithm, "replay:5")[0] == -9
    resumed(runner, data, tmp_path, algorithm)
    assert jobs.differences(uninterrupted(algorithm), tmp_path) == []


@pytest.mark.parametrize("algorithm", ["ERM", "DomainFusion"])
@pytest.mark.parametrize("average", ["sma", "ema", "swad"])
def test_averages_of_the_weights(runner, data, uninterrupted, tmp_path, algorithm, average):
    """A step that is missing from the average, or in it twice, changes model.pkl."""
    hparams = {"weight_average": average, "weight_average_start": 2, "swad_converge": 2, "swad_tolerance": 2}
    assert runner.run(tmp_path, data, algorithm, "update:8", **hparams)[0] == -9
    resumed(runner, data, tmp_path, algorithm, **hparams)
    assert jobs.differences(uninterrupted(algorithm, **hparams), tmp_path) == []


@pytest.mark.parametrize("keep", ["none", "last", "all"])
@pytest.mark.parametrize("moment", ["round:2", "round:8", "checkpoint:4", "update:10", "row:4"])
def test_domainfusion(runner, data, uninterrupted, tmp_path, moment, keep):
    hparams = {"save_generated": keep}
    assert runner.run(tmp_path, data, "DomainFusion", moment, **hparams)[0] == -9
    resumed(runner, data, tmp_path, "DomainFusion", **hparams)
    assert jobs.differences(uninterrupted("DomainFusion", **hparams), tmp_path) == []


@pytest.mark.parametrize("algorithm", ["ERM", "DomainFusion"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["SIGTERM", "SIGUSR2"])
@pytest.mark.parametrize("seconds", [2.0, 3.5, 5.0])
def test_a_signal_to_the_whole_job(runner, data, uninterrupted, tmp_path, algorithm, number, seconds):
    """As a cluster sends it, loader workers included. The status is that of the signal."""
    process = runner.start(tmp_path, data, algorithm, resume="on")
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.killpg(process, number)
    status, printed = runner.wait()
    assert status in (0, -number, 128 + number), printed  # 0: it had ended; -number: it had not begun
    assert "DataLoader worker" not in printed  # a worker may still say that its connection is gone
    resumed(runner, data, tmp_path, algorithm)
    assert jobs.differences(uninterrupted(algorithm), tmp_path) == []


@pytest.mark.parametrize("moment", ["update:5:SIGTERM", "evaluation:20:SIGUSR2", "row:3:SIGTERM", "save:3:SIGUSR2"])
def test_a_signal_makes_a_checkpoint_of_the_present_step(runner, data, uninterrupted, tmp_path, moment):
    status, _ = runner.run(tmp_path, data, "ERM", moment, resume="on")
    assert status == 128 + getattr(signal, moment.split(":")[2])
    step = {"update": 4, "evaluation": 9, "row": 6, "save": 6}[moment.split(":")[0]]
    assert f"Continued after step {step} from" in resumed(runner, data, tmp_path, "ERM")
    assert jobs.differences(uninterrupted("ERM"), tmp_path) == []


def test_the_step_time_of_the_first_row_is_not_that_of_the_replay(runner, data, tmp_path):
    runner.run(tmp_path, data, "SAM", "update:6")
    printed = resumed(runner, data, tmp_path, "SAM")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert "Continued after step 4" in printed
    row = next(row for row in rows if row["step"] == 6)
    assert row["step_time"] > 0.5 * rows[-1]["step_time"]


@pytest.fixture
def copy(runner, data, tmp_path):
    """The folder of an ERM that was killed after some checkpoints."""
    assert runner.run(tmp_path / "job", data, "ERM", "update:6")[0] == -9
    return tmp_path / "job"


def test_changed_images_are_refused(runner, data, copy, tmp_path):
    changed = shutil.copytree(data, tmp_path / "changed")
    for picture in changed.rglob("*.png"):
        shutil.copy(next((data / "tiny").rglob("*.png")), picture)
    status, printed = runner.run(copy, changed, "ERM")
    assert status == 1
    assert "cannot be continued: step 0 gets another minibatch or other random numbers than then" in printed
    assert "Traceback" not in printed


def test_a_job_that_is_being_trained_is_not_trained_twice(runner, data, copy):
    lock = JobLock(copy / "resume")
    rows = (copy / "results.jsonl").read_bytes()
    status, printed = runner.run(copy, data, "ERM")
    lock.release()
    assert status == 1 and "is being trained already" in printed
    assert (copy / "results.jsonl").read_bytes() == rows


def test_a_done_job_stays_as_it_is(runner, data, copy):
    (copy / "done").write_text("done")
    rows = (copy / "results.jsonl").read_bytes()
    status, printed = runner.run(copy, data, "ERM")
    assert status == 0 and printed == f"The job in {copy} is done: nothing is left to train.\n"
    assert (copy / "results.jsonl").read_bytes() == rows


def test_a_sweep_that_was_killed_goes_on(data, tmp_path):
    """The launcher and its jobs are killed; the same launch finishes all jobs, and no row comes twice."""
    words = ["--datasets", "TinyFolder", "--algorithms", "SAM", "--single_test_envs", "--n_trials", "1"]
    words += [
        "--n_hparams",
        "1",
        "--steps",
        "30",
        "--hparams",
        json.dumps(tiny_folder.HPARAMS),
        "--data_dir",
        str(data),
    ]
    words += ["--output_dir", str(tmp_path), "--command_launcher", "cores", "--skip_confirmation"]
    command = [sys.executable, "-W", "ignore", "-m", f"{host.NAME}.scripts.sweep", "launch", *words]
    paths = [str(ROOT), os.environ.get("DOMAINBED_DIR", ""), os.environ.get("PYTHONPATH", "")]
    environment = {
        **host_scripts.script_environment(),
        "DOMAINFUSION_RESUME": "0.0",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.time() + 120
    while not list(tmp_path.glob("*/resume/checkpoint-*.json")) and time.time() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert len(list(tmp_path.glob("*/done"))) < 3
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "incomplete jobs are taken up again." in ended.stdout
    assert len(list(tmp_path.glob("*/done"))) == 3
    for results in tmp_path.glob("*/results.jsonl"):
        steps = [json.loads(line)["step"] for line in results.read_text().splitlines()]
        assert steps == sorted(set(steps)) and steps[-1] == 29
