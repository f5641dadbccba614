"""What a job takes: the variable, the guess from its diffusion model's weights, the peaks, and when one more fits."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.pocket import LDM_FOLDER
from domainbed_domainfusion.sweeping.launchers import job_memory
from domainbed_domainfusion.sweeping.launchers.job_memory import GIB, JobMemory, asked_bytes, guessed_bytes, taken_bytes

ERM = {"algorithm": "ERM", "dataset": "PACS", "hparams_seed": "0", "trial_seed": "0"}
DOMAINFUSION = {**ERM, "algorithm": "DomainFusion"}


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    monkeypatch.delenv(job_memory.MEMORY_VARIABLE, raising=False)


@pytest.mark.parametrize(
    "text, expected",
    [("12G", 12 * GIB), ("900M", 900 * 1024**2), ("1.5g", 3 * GIB // 2), ("2TB", 2048 * GIB), ("", None)],
)
def test_an_amount_of_memory_is_read(monkeypatch, text, expected):
    monkeypatch.setenv(job_memory.MEMORY_VARIABLE, text)
    assert asked_bytes() == expected


@pytest.mark.parametrize("text", ["12", "G", "-1G", "0G", "1e3G", "12 G", "much"])
def test_anything_else_is_bad_input(monkeypatch, text):
    monkeypatch.setenv(job_memory.MEMORY_VARIABLE, text)
    with pytest.raises(InputError, match="is not an amount of memory: set it to what one job takes, such as 12G"):
        JobMemory()


def test_the_guess_counts_the_weights_of_the_jobs_diffusion_model(tmp_path):
    weights = sum(file.stat().st_size for file in Path(LDM_FOLDER).rglob("*") if file.suffix == ".safetensors")
    assert weights > 10 * 1024**2
    pocket = guessed_bytes({**DOMAINFUSION, "hparams": json.dumps({"ldm": "pocket"})})
    assert 4 * GIB + 3 * weights <= pocket < 4 * GIB + 3 * weights + 10 * 1024**2
    assert guessed_bytes(ERM) == 4 * GIB
    assert guessed_bytes(DOMAINFUSION) == 16 * GIB  # Stable Diffusion, which is not here
    assert guessed_bytes({**DOMAINFUSION, "hparams": "not JSON"}) == 4 * GIB
    assert guessed_bytes({}) == 4 * GIB


def test_what_was_seen_counts_more_than_the_guess_and_what_was_asked_more_than_both(monkeypatch):
    memory = JobMemory()
    memory.seen(ERM, GIB, began=False)
    assert memory.expected(ERM) == 4 * GIB  # it has not shown yet what it takes
    memory.seen(ERM, 5 * GIB, began=False)
    assert memory.expected(ERM) == pytest.approx(5.5 * GIB)
    memory.seen(ERM, 2 * GIB, began=True)
    assert memory.expected(ERM) == pytest.approx(5.5 * GIB)  # the largest amount
    assert memory.expected(DOMAINFUSION) == 16 * GIB  # a kind of its own
    memory.seen(DOMAINFUSION, GIB, began=True)
    assert memory.expected(DOMAINFUSION) == pytest.approx(1.1 * GIB)
    monkeypatch.setenv(job_memory.MEMORY_VARIABLE, "3G")
    assert JobMemory().expected(DOMAINFUSION) == 3 * GIB


def test_a_job_fits_if_what_the_running_ones_will_still_take_leaves_room(monkeypatch):
    monkeypatch.setattr(job_memory, "free_memory", lambda device: 10 * GIB)
    memory = JobMemory()
    assert memory.fits(ERM, [(ERM, 3 * GIB)])  # 10 - 1 >= 4
    assert memory.fits(ERM, [(ERM, GIB), (ERM, GIB)])  # 10 - 6 = 4
    assert not memory.fits(ERM, [(ERM, GIB), (ERM, GIB - 1)])
    assert memory.fits(ERM, [(ERM, 9 * GIB)] * 3)  # what is taken already is not counted twice
    assert not memory.fits(DOMAINFUSION, [])
    monkeypatch.setattr(job_memory, "free_memory", lambda device: None)
    assert memory.fits(DOMAINFUSION, [(DOMAINFUSION, 0)])


def test_the_memory_of_a_process_is_that_of_its_whole_tree():
    size = 200 * 1024**2
    holds = f"import time; x = b'1' * {size}; print('ready', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        assert size < taken_bytes(process.pid) < 2 * size
    finally:
        for each in job_memory.psutil.Process(process.pid).children():
            each.kill()
        process.wait()
    time.sleep(0.05)
    assert taken_bytes(process.pid) == 0  # it has ended
