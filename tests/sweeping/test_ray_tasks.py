"""The launcher `ray` without a cluster: each job's share of the nodes, what a worker runs, and bad input.

A real cluster that loses a node is in tests/ray_cluster.
"""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming.job_lock import JobLock
from domainbed_domainfusion.sweeping.launchers import ray_tasks
from domainbed_domainfusion.sweeping.launchers.job_memory import GIB
from domainbed_domainfusion.sweeping.launchers.ray_tasks import Share, check_nodes, job_share, run_job


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    for variable in (ray_tasks.CPUS_VARIABLE, ray_tasks.GPUS_VARIABLE, "DOMAINFUSION_JOB_MEMORY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    "nodes, expected",
    [
        ([node(CPU=8), node(CPU=4)], Share(1, 0)),
        ([node(CPU=0), node(CPU=64, GPU=8), node(CPU=24, GPU=4)], Share(6, 1)),  # 8 and 6 cores for each GPU
        ([node(CPU=2, GPU=4)], Share(1, 1)),
        ([node(CPU=2), node(alive=False, CPU=64, GPU=8)], Share(1, 0)),
    ],
)
def test_a_job_gets_a_gpu_where_there_are_some_and_its_part_of_the_cores(nodes, expected):
    assert job_share(nodes) == expected


def test_the_variables_override_the_share(monkeypatch):
    monkeypatch.setenv(ray_tasks.GPUS_VARIABLE, "2")
    assert job_share([node(CPU=64, GPU=8)]) == Share(16, 2)
    monkeypatch.setenv(ray_tasks.CPUS_VARIABLE, "5")
    assert job_share([node(CPU=64, GPU=8)]) == Share(5, 2)
    monkeypatch.setenv(ray_tasks.GPUS_VARIABLE, "0")
    assert job_share([node(CPU=64, GPU=8)]) == Share(5, 0)


@pytest.mark.parametrize("variable, text", [("CPUS", "0"), ("CPUS", "two"), ("GPUS", "-1"), ("GPUS", "0.5")])
def test_a_senseless_share_is_bad_input(monkeypatch, variable, text):
    monkeypatch.setenv(f"DOMAINFUSION_JOB_{variable}", text)
    with pytest.raises(InputError, match=f"DOMAINFUSION_JOB_{variable}='{text}' is not a whole number of at least"):
        job_share([node(CPU=2)])


def test_a_job_that_no_node_can_hold_is_refused_before_ray_waits_for_ever():
    nodes = [node(CPU=4, GPU=1, memory=8 * GIB), node(CPU=16, memory=64 * GIB), node(alive=False, CPU=99, GPU=9)]
    check_nodes(nodes, Share(4, 1), 8 * GIB)
    check_nodes(nodes, Share(16, 0), 64 * GIB)
    for share, memory in ((Share(8, 1), GIB), (Share(4, 1), 9 * GIB), (Share(1, 2), GIB)):
        with pytest.raises(InputError):
            check_nodes(nodes, share, memory)
    with pytest.raises(InputError) as raised:
        check_nodes(nodes, Share(8, 1), GIB)
    assert str(raised.value) == (
        "No node of the Ray cluster can hold a job of 8 cores, 1 GPUs and 1.0 GB (nodes: 4 cores, 1 GPUs, 8.0 GB; 16 "
        "cores, 0 GPUs, 64.0 GB): set DOMAINFUSION_JOB_CPUS, DOMAINFUSION_JOB_GPUS or DOMAINFUSION_JOB_MEMORY to less, "
        "or add a larger node."
    )


def test_a_worker_runs_the_command_in_the_sweeps_folder_with_its_variables(tmp_path):
    status, log = run_job("sh -c 'pwd; echo $WORD; echo reason >&2; exit 3' > printed", str(tmp_path), {"WORD": "here"})
    assert (status, log) == (3, "reason\n")
    assert (tmp_path / "printed").read_text().split() == [os.path.realpath(tmp_path), "here"]


def test_a_job_waits_for_the_process_that_trained_it_before(tmp_path):
    """The job's lock is held by another process for a second."""
    job = tmp_path / "job"
    hold = f"from {JobLock.__module__} import JobLock; import time; from pathlib import Path; "
    hold += f"lock = JobLock(Path({str(job / 'resume')!r})); print('held', flush=True); time.sleep(1)"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="is being trained already"):
        JobLock(job / "resume")
    assert run_job("true --output_dir job", str(tmp_path), {}) == (0, "")
    assert holder.poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_job_ends_when_its_worker_is_killed(tmp_path):
    job = "sh -c 'echo $$ > number; sleep 60'"
    worker = f"from {ray_tasks.__name__} import run_job; run_job({job!r}, {str(tmp_path)!r}, {{}})"
    process = subprocess.Popen([sys.executable, "-c", worker])
    try:
        wait_until(lambda: (tmp_path / "number").is_file() and (tmp_path / "number").read_text().strip())
        number = int((tmp_path / "number").read_text())
        assert runs(number)
        process.kill()
        wait_until(
            lambda: not Path(f"/proc/{number}").exists() or "zombie" in Path(f"/proc/{number}/status").read_text()
        )
    finally:
        process.kill()
        process.wait()


def test_a_job_of_an_interrupted_sweep_gets_the_signal_that_makes_it_write_its_checkpoint(monkeypatch, tmp_path):
    """Ray raises KeyboardInterrupt in a worker whose task is cancelled, in the way of `interrupt_main`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores SIGINT
    try:
        threading.Timer(1.0, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            run_job("sh -c 'trap \"echo told > told; exit 1\" TERM; while :; do sleep 0.05; done'", str(tmp_path), {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "told").read_text() == "told\n"


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs the package ray: pip install 'domainbed-domainfusion\[ray\]'"):
        ray_tasks.launch(["true"])


@pytest.mark.parametrize(
    "address, named",
    [("10.0.0.1:6379", "no Ray cluster at RAY_ADDRESS=10.0.0.1:6379 (gone)"), (None, "Ray does not start here (gone)")],
)
def test_a_ray_that_does_not_answer_is_one_sentence(monkeypatch, address, named):
    class NoRay:
        @staticmethod
        def init(**options):
            assert options["address"] == (address or "local")
            raise ConnectionError("gone\nlong story")

    monkeypatch.setitem(sys.modules, "ray", NoRay)
    monkeypatch.setenv(ray_tasks.ADDRESS_VARIABLE, address or "")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    with pytest.raises(InputError) as raised:
        ray_tasks.launch(["true"])
    assert named in str(raised.value)
    assert str(raised.value).endswith("or launch with --command_launcher cores or gpus.")
    assert os.environ.get("RAY_USAGE_STATS_ENABLED") == (None if address else "0")  # a cluster's own is left alone


def test_a_job_on_another_node_gets_what_its_run_needs(monkeypatch):
    monkeypatch.setenv("DOMAINFUSION_RESUME", "5")
    monkeypatch.setenv("DOMAINFUSION_JOBS", "2")
    monkeypatch.setenv("PYTHONPATH", "/checkout")
    monkeypatch.setenv("SOMETHING", "else")
    variables = ray_tasks._variables()
    assert variables["DOMAINFUSION_RESUME"] == "5" and variables["PYTHONPATH"] == "/checkout"
    assert not {"DOMAINFUSION_JOBS", "SOMETHING"} & set(variables)


def test_the_host_knows_the_launcher():
    assert host.command_launchers.REGISTRY["ray"] is ray_tasks.launch
    ray_tasks.launch([])


def runs(number: int) -> bool:
    status = Path(f"/proc/{number}/status")
    return status.exists() and "zombie" not in status.read_text()


def wait_until(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
