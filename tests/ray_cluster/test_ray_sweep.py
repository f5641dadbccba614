"""A sweep on a Ray cluster of two nodes, one of which is lost. Every job ends as if nothing had happened.

It takes some minutes and needs the package ray, so it runs only when RAY_TESTS is set: `make test-ray`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domainbed_domainfusion.resuming.own_state import CONTINUED
from domainbed_domainfusion.sweeping import status

from ..resuming import tiny_folder
from ..resuming.jobs import differences

pytestmark = pytest.mark.skipif(not os.environ.get("RAY_TESTS"), reason="minutes, with a Ray of its own: make test-ray")

STEPS = 500
HPARAMS = {**tiny_folder.GENERATING, "generation_interval": 75, "gallery": 1}
GIB = 1024**3


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose head has no cores, and two nodes with one core each, all of them processes of this machine."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="pip install 'domainbed-domainfusion[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def sweep(root: Path, output: str, launcher: str, environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "domainbed_domainfusion.minibed.scripts.sweep", "launch"]
    command += ["--data_dir", str(root / "data"), "--output_dir", output, "--command_launcher", launcher]
    command += ["--algorithms", "ERM", "DomainFusion", "--datasets", tiny_folder.NAME, "--hparams", json.dumps(HPARAMS)]
    command += ["--n_hparams", "1", "--n_trials", "1", "--steps", str(STEPS)]
    command += ["--single_test_envs", "--skip_confirmation"]
    return subprocess.Popen(command, env=environment, cwd=root)


def states(output: Path) -> list[status.JobStatus]:
    jobs = status.status(output)
    print(f"\n{time.strftime('%H:%M:%S')}\n{status.text(jobs)}", flush=True)
    return jobs


def times_continued(output: Path) -> dict[str, int]:
    """How many times each job was continued."""
    return {path.parent.name: path.read_text().count(CONTINUED) for path in output.glob("*/out.txt")}


def wait_until(condition, what: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.5)


def test_neither_an_interrupted_launch_nor_a_lost_node_costs_a_job(cluster, tmp_path):
    tiny_folder.write(tmp_path / "data", checkpoint_freq=100)
    nodes = [cluster.add_node(num_cpus=1, memory=8 * GIB) for _ in range(2)]
    cluster.wait_for_nodes()
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "DOMAINFUSION_RESUME": "0.05"}
    output = tmp_path / "sweep"

    def steps() -> list[int]:
        jobs = status.status(output) if output.is_dir() and any(output.iterdir()) else []
        return [job.step or 0 for job in jobs if job.state == status.RUNNING]

    launch = sweep(tmp_path, "sweep", "ray", environment)
    wait_until(lambda: len(steps()) == 2 and min(steps()) > 30, "two jobs that train")
    assert {job.state for job in states(output)} == {status.RUNNING, status.WAITING}
    launch.send_signal(signal.SIGINT)
    assert launch.wait(timeout=120) != 0
    wait_until(lambda: not steps(), "the end of the jobs", 60)
    interrupted = [job for job in states(output) if job.state == status.STOPPED]
    assert len(interrupted) == 2

    launch = sweep(tmp_path, "sweep", "ray", environment)
    wait_until(lambda: len(steps()) == 2 and min(steps()) > 60, "two jobs that train")
    known = {job.folder: job.continued for job in status.status(output)}
    cluster.remove_node(nodes[0], allow_graceful=False)
    wait_until(
        lambda: any(job.continued > known[job.folder] for job in status.status(output)), "the job of the lost node"
    )
    states(output)
    assert launch.wait(timeout=900) == 0
    assert {job.state for job in states(output)} == {status.DONE}
    assert sum(times_continued(output).values()) >= 3

    alone = sweep(tmp_path, "uninterrupted", "cores", {**environment, "DOMAINFUSION_RESUME": "off"})
    assert alone.wait(timeout=900) == 0
    jobs = sorted(path for path in output.iterdir() if len(path.name) == 32)
    uninterrupted = {path.name: path for path in (tmp_path / "uninterrupted").iterdir()}
    assert sorted(uninterrupted) == [job.name for job in jobs]
    assert len(jobs) == 6
    assert {job.name: differences(uninterrupted[job.name], job) for job in jobs} == {job.name: [] for job in jobs}
