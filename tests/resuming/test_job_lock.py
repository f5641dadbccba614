"""The lock of a job, and the stop signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.resuming import job_lock
from domainbed_domainfusion.resuming.job_lock import JobLock

#: Holds the lock, has a child as a loader has workers, says so, and sleeps.
HOLDER = """
import os, sys, time
from pathlib import Path
from domainbed_domainfusion.resuming.job_lock import JobLock
lock = JobLock(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "job" / "resume")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, holder):
    folder = tmp_path / "job" / "resume"
    assert job_lock.is_held(folder)
    with pytest.raises(InputError) as raised:
        JobLock(folder)
    assert str(raised.value) == (
        f"The job in {tmp_path / 'job'} is being trained already (process {holder.pid} on {os.uname().nodename}): wait "
        "until it ends, or stop it."
    )
    holder.kill()  # its child lives on, as a loader worker may for some seconds
    holder.wait()
    assert not job_lock.is_held(folder)
    JobLock(folder).release()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "job").write_text("")
    with pytest.raises(InputError, match=r"Cannot write in .*: choose another output folder, or train without"):
        JobLock(tmp_path / "job" / "resume")
    assert not job_lock.is_held(tmp_path / "nowhere")


SIGNALLED = """
import atexit, os, signal, sys, time
import torch
from domainbed_domainfusion.resuming.stop_signals import StopSignals, end_workers, spare_workers

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 1000
    def __getitem__(self, i):
        time.sleep(0.02)
        return i

class Loader:
    def __init__(self):
        self.batches = iter(torch.utils.data.DataLoader(Slow(), batch_size=4, num_workers=2))

spare_workers(Loader)
atexit.register(end_workers)
asked = []
StopSignals(lambda number: asked.append(number))
loader = Loader()
next(loader.batches)
print("ready", flush=True)
end = time.time() + 1.5
while time.time() < end:  # a step that takes long
    next(loader.batches)  # of its own workers, as DomainFusion takes generated images
print(asked, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM], ids=str)  # test_killed_jobs has SIGUSR2
def test_a_signal_to_all_processes_of_a_job_asks_once_and_lets_the_step_end(number):
    """As a cluster sends it: to the training process and to its loader workers."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SIGNALLED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    os.killpg(process.pid, number)
    printed, errors = process.communicate(timeout=60)
    assert printed == f"[{int(number)}]\n", errors
    assert "killed by signal" not in errors
