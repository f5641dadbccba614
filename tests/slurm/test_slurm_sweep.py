"""A sweep on a real Slurm: preempted, out of time, killed, its node lost. Every job ends as if nothing had happened.

It takes some minutes and needs root, so it runs only when SLURM_TESTS is set: `make test-slurm`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domainbed_domainfusion.sweeping import slurm_records, status

from ..resuming import tiny_folder
from ..resuming.jobs import differences
from .cluster import Cluster, wait_until, why_not

pytestmark = pytest.mark.skipif(
    not os.environ.get("SLURM_TESTS"), reason="minutes, with a Slurm of its own: make test-slurm"
)

STEPS = 1000
HPARAMS = {**tiny_folder.GENERATING, "generation_interval": 150, "gallery": 1}
SETTINGS = """
partition = "low"
time = 2
gpus = 0
cpus = 1
memory = "1G"
signal_seconds = 60
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def sweep(root: Path, output: str, launcher: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "domainbed_domainfusion.minibed.scripts.sweep", "launch"]
    command += ["--data_dir", str(root / "data"), "--output_dir", str(root / output), "--command_launcher", launcher]
    command += ["--algorithms", "ERM", "DomainFusion", "--datasets", tiny_folder.NAME, "--hparams", json.dumps(HPARAMS)]
    command += ["--n_hparams", "1", "--n_trials", "1", "--steps", str(STEPS)]
    command += ["--single_test_envs", "--skip_confirmation"]
    subprocess.run(command, env=environment, cwd=root, check=True)


def states(output: Path) -> list[status.JobStatus]:
    jobs = status.status(output)
    print(f"\n{time.strftime('%H:%M:%S')}\n{status.text(jobs)}", flush=True)
    return jobs


def training_processes(output: Path) -> list[int]:
    """The processes that hold a job's lock, from what they wrote into it."""
    jobs = [job for job in status.status(output) if job.state == status.RUNNING]
    locks = [(output / job.folder / "resume" / "lock") for job in jobs]
    found = [number for path in locks if path.exists() for number in re.findall(r"process (\d+)", path.read_text())]
    return [int(process) for process in found if Path(f"/proc/{process}").exists()]


def test_a_sweep_survives_all_that_a_cluster_does_to_it(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    tiny_folder.write(tmp_path / "data", checkpoint_freq=200)
    (tmp_path / "slurm.toml").write_text(SETTINGS)
    output = tmp_path / "sweep"
    environment = {**cluster.environment, "DOMAINFUSION_RESUME": "0.05", "OMP_NUM_THREADS": "1"}
    sweep(tmp_path, "sweep", "slurm", environment)
    assert {each.state for each in states(output)} <= {"queued", "running"}
    sweep(tmp_path, "sweep", "slurm", environment)  # a second launch submits nothing twice
    assert len(cluster.run("squeue", "--noheader", "--array").splitlines()) == 6

    wait_until(lambda: len(training_processes(output)) == 2, "two jobs that train")
    wait_until(
        lambda: min(job.step or 0 for job in status.status(output) if job.state == "running") > 30, "their steps"
    )
    cluster.run("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 5")
    wait_until(lambda: sum(job.interrupted for job in status.status(output)) >= 2, "preemption")
    preempted = [job for job in states(output) if job.interrupted]
    assert [job.state for job in preempted] == ["queued"] * 2
    cluster.do_not_wait()

    wait_until(lambda: len(training_processes(output)) == 2, "two jobs that train")
    os.kill(training_processes(output)[0], signal.SIGKILL)
    wait_until(lambda: any(job.state == "failed" for job in status.status(output)), "the job that was killed")
    failed = [job for job in states(output) if job.state == "failed"]
    assert [job.exit_status for job in failed] == [-signal.SIGKILL]

    wait_until(lambda: len(training_processes(output)) == 2, "two jobs that train")
    cluster.crash_node()
    cluster.start_node()

    def finished() -> bool:
        cluster.do_not_wait()
        return not any(job.state in status.OPEN for job in status.status(output))

    wait_until(finished, "the end of the sweep", 900)
    assert sorted(job.state for job in states(output)) == ["done"] * 5 + ["failed"]
    sweep(tmp_path, "sweep", "slurm", environment)  # takes up the job that was killed
    wait_until(finished, "the job that was killed", 300)
    assert {job.state for job in states(output)} == {"done"}

    sweep(tmp_path, "uninterrupted", "cores", {**environment, "DOMAINFUSION_RESUME": "off"})
    jobs = sorted(path for path in output.iterdir() if len(path.name) == 32)
    events = [event["event"] for job in jobs for event in slurm_records.read(job)]
    print({event: events.count(event) for event in dict.fromkeys(events)})
    uninterrupted = {path.name: path for path in (tmp_path / "uninterrupted").iterdir()}
    assert sorted(uninterrupted) == [job.name for job in jobs]
    assert len(jobs) == 6
    assert {job.name: differences(uninterrupted[job.name], job) for job in jobs} == {job.name: [] for job in jobs}
