"""The launcher `cores`: the number of parallel jobs, their threads and memory, and the error for failed jobs."""

import os
import sys
from pathlib import Path

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.sweeping import host_scripts
from domainbed_domainfusion.sweeping.launchers import cores, job_memory, job_pool
from domainbed_domainfusion.sweeping.launchers.job_pool import LocalJob


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(cores.joblib, "cpu_count", lambda: 4)
    monkeypatch.delenv(cores.JOBS_VARIABLE, raising=False)


def meeting(folder: Path, name: str, partner: str) -> str:
    """A command that succeeds only if its partner runs at the same time. It logs its start and its end."""
    return (
        f"cd {folder}; echo start >> log; touch {name}; tries=0; "
        f"until [ -e {partner} ]; do sleep 0.05; tries=$((tries+1)); [ $tries -lt 400 ] || exit 1; done; "
        f"echo $OMP_NUM_THREADS > threads-{name}; echo end >> log"
    )


def test_as_many_as_asked_run_beside_each_other_and_never_more(four_cores, monkeypatch, tmp_path):
    monkeypatch.setenv(cores.JOBS_VARIABLE, "2")
    cores.launch([meeting(tmp_path, *pair) for pair in ("ab", "ba", "cd", "dc")])
    active = most = 0
    for word in (tmp_path / "log").read_text().split():
        active += 1 if word == "start" else -1
        most = max(most, active)
    assert most == 2
    assert {(tmp_path / f"threads-{name}").read_text().strip() for name in "abcd"} == {"2"}


def test_without_being_asked_one_runs_per_core(four_cores, monkeypatch):
    assert cores.jobs_at_a_time() == 4
    monkeypatch.setenv(cores.JOBS_VARIABLE, "9")
    assert cores.jobs_at_a_time() == 4


@pytest.mark.parametrize("asked", ["0", "-1", "two", ""])
def test_a_senseless_number_of_jobs_is_bad_input(monkeypatch, asked):
    monkeypatch.setenv(cores.JOBS_VARIABLE, asked)
    with pytest.raises(InputError, match="is not a number of jobs: set it to 1 or more, or unset it to run as many"):
        cores.launch(["true"])


def test_failed_jobs_are_named_with_the_last_line_of_their_error(four_cores, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "err.txt").write_text("Traceback\nValueError: too small\n\n")
    train = "python -m x.scripts.train --algorithm SAM --dataset PACS --test_envs 2 3"
    with pytest.raises(InputError) as raised:
        cores.launch(
            [
                f"false {train} --output_dir {tmp_path}/a --steps 10",
                "true",
                f"echo gone >&2; exit 3 # {train} --output_dir {tmp_path}/b",
            ]
        )
    assert str(raised.value) == (
        "2 of 3 jobs failed; mend the cause and launch again, which continues them (delete_incomplete removes them):\n"
        f"  SAM PACS test_envs 2 3 in {tmp_path}/a: ValueError: too small\n"
        f"  SAM PACS test_envs 2 3 in {tmp_path}/b: gone"
    )


@pytest.mark.parametrize("command", ["kill -9 $$", "sh -c 'kill -9 $$'; exit $?"])
def test_a_job_that_the_system_killed_is_told_the_remedy(four_cores, tmp_path, command):
    """Also if its err.txt holds a warning."""
    (tmp_path / "err.txt").write_text("UserWarning: eight workers\n")
    with pytest.raises(InputError) as raised:
        cores.launch([f"{command} # --algorithm SAM --dataset PACS --output_dir {tmp_path}"])
    assert str(raised.value).endswith(
        f"  SAM PACS test_envs 0 in {tmp_path}: it was killed, as the system does when the memory is used up: say what "
        "a job takes, for example DOMAINFUSION_JOB_MEMORY=16G, or run fewer at a time, for example DOMAINFUSION_JOBS=1"
    )


def test_progress_counts_the_steps_in_the_results_file(tmp_path):
    job = LocalJob(f"exec sleep 30 --algorithm ERM --dataset PACS --output_dir {tmp_path} --steps 200")
    assert job.progress() == 0
    job.command = "exec sleep 30"
    job.start(dict(os.environ))
    try:
        assert (job.progress(), job.status()) == (0, "ERM PACS test_envs 0 starting")
        (tmp_path / "results.jsonl").write_text('{"step": 0}\n{"step": 99}\n{"step": 10')
        assert (job.progress(), job.status()) == (0.5, "ERM PACS test_envs 0 step 99")
    finally:
        job.stop()
    assert job.progress() == 1


def test_a_job_that_does_not_fit_waits_until_the_others_have_ended(four_cores, monkeypatch, tmp_path, capfd):
    """Four may run at a time, but the memory holds two: one that runs, with 1 GB of its 3 taken, and a second."""
    running = tmp_path / "running"
    running.mkdir()
    monkeypatch.setenv(job_memory.MEMORY_VARIABLE, "3G")
    free = lambda device: (6 - len(list(running.iterdir()))) * job_memory.GIB  # noqa: E731
    monkeypatch.setattr(job_memory, "free_memory", free)
    monkeypatch.setattr(job_pool, "taken_bytes", lambda process: job_memory.GIB)
    job = "touch running/{0}; ls running | wc -l >> most; sleep 0.5; rm running/{0} # --algorithm A{0} --dataset D"
    cores.launch([f"cd {tmp_path}; {job.format(i)}" for i in range(5)])
    assert max(map(int, (tmp_path / "most").read_text().split())) == 2
    assert len((tmp_path / "most").read_text().split()) == 5
    told = capfd.readouterr().err
    assert "A2 D test_envs 0 waits for memory: a job of its kind is expected to take 3.0 GB. " in told
    assert told.count("A2 D test_envs 0 waits for memory") == 1


def test_nothing_to_launch_is_no_work():
    cores.launch([])


def test_the_host_knows_the_launcher():
    assert host.command_launchers.REGISTRY["cores"] is cores.launch


def test_a_hosts_script_finds_this_interpreter_as_python(monkeypatch):
    called = {}
    monkeypatch.setattr(
        host_scripts.subprocess, "call", lambda command, env: called.update(command=command, env=env) or 3
    )
    assert host_scripts.run_host_script("sweep", ["launch", "--steps", "1"]) == 3
    assert called["command"] == [sys.executable, "-m", f"{host.NAME}.scripts.sweep", "launch", "--steps", "1"]
    assert called["env"]["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
