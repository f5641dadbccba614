"""`sweep launch` takes up incomplete jobs that can go on."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming import incomplete
from domainbed_domainfusion.sweeping import sweep_files


@dataclass
class Job:
    command_str: str
    output_dir: str


@pytest.fixture
def jobs(tmp_path):
    made = [Job(f"train {name}", str(tmp_path / name)) for name in ("new", "done", "empty", "protected", "unprotected")]
    for job in made[1:]:
        (tmp_path / job.command_str.split()[1]).mkdir()
    (tmp_path / "new").mkdir()  # the host has made it before it calls the launcher
    (tmp_path / "done" / "done").write_text("done")
    for name in ("done", "protected"):
        (tmp_path / name / "resume").mkdir()
    for name in ("done", "protected", "unprotected"):
        (tmp_path / name / "results.jsonl").write_text("{}\n")
    return made


def test_incomplete_jobs_are_launched_after_the_new_ones(jobs, capsys):
    launched = []
    incomplete.taking_up(launched.extend, lambda: jobs)(["train new"])
    assert launched == ["train new", "train empty", "train protected"]
    assert capsys.readouterr().out == "2 incomplete jobs are taken up again.\n"


HOLDER = "import sys; from pathlib import Path; from domainbed_domainfusion.resuming.job_lock import JobLock; "
HOLDER += "lock = JobLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_a_job_that_is_being_trained_is_left_alone(jobs, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "protected" / "resume")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    assert not incomplete.can_continue(tmp_path / "protected")
    process.communicate("")
    assert incomplete.can_continue(tmp_path / "protected")


@pytest.mark.parametrize(
    "script, resume, taken",
    [
        ("sweep", "on", {"local", "cores"}),
        ("sweep", "", {"cores"}),
        ("sweep", "off", set()),
        ("train", "on", set()),
    ],
)
def test_only_launchers_whose_jobs_have_checkpoints_take_up(monkeypatch, as_script, script, resume, taken):
    registry = dict(host.command_launchers.REGISTRY)
    monkeypatch.setattr(host.command_launchers, "REGISTRY", registry)
    before = dict(registry)
    as_script(script, "launch")
    monkeypatch.setenv("DOMAINFUSION_RESUME", resume)
    incomplete.take_up_incomplete(list, ("cores",))
    changed = {name for name in registry if registry[name] is not before[name]}
    assert changed & {"local", "cores", "dummy"} == taken


def test_the_jobs_are_those_of_the_hosts_sweep(monkeypatch, tmp_path):
    words = ["--datasets", "DigitStyles", "--algorithms", "ERM", "SAM", "--single_test_envs", "--n_hparams", "1"]
    words += ["--n_trials", "1", "--data_dir", "d", "--output_dir", str(tmp_path), "--command_launcher", "local"]
    monkeypatch.setattr(sys, "argv", ["sweep", "launch", *words])
    assert incomplete.sweep_arguments() == words
    jobs = sweep_files.jobs_of_arguments(incomplete.sweep_arguments())
    assert len(jobs) == 8 and all(job.output_dir.startswith(str(tmp_path)) for job in jobs)
