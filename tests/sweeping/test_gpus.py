"""The launcher `gpus`: which GPUs, one job on each at a time, and the next job on the one that is free first."""

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import calibration
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.sweeping.launchers import cores, gpus


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(gpus.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(cores.joblib, "cpu_count", lambda: 12)
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.delenv(cores.JOBS_VARIABLE, raising=False)


def test_a_job_starts_on_the_gpu_that_is_free_and_never_on_one_that_is_not(three_gpus, tmp_path):
    """The first job holds GPU 0 until the last one has run: the others share GPUs 1 and 2."""
    hold = f"for i in $(seq 400); do [ -e {tmp_path}/last ] && break; sleep 0.05; done"
    job = (
        "mkdir lock-$CUDA_VISIBLE_DEVICES || exit 1; "
        'echo "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" >> log; {}; rmdir lock-$CUDA_VISIBLE_DEVICES'
    )
    commands = [f"cd {tmp_path}; {job.format(work)}" for work in (hold, *["sleep 0.1"] * 4, f"touch {tmp_path}/last")]
    gpus.launch(commands)
    used = (tmp_path / "log").read_text().splitlines()
    assert len(used) == 6
    assert used.count("0 4") == 1
    assert set(used) == {"0 4", "1 4", "2 4"}


def test_only_visible_gpus_are_used(three_gpus, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "5, GPU-8f2,7")
    assert [place[gpus.VISIBLE] for place in gpus.gpus_conditions(9)] == ["5", "GPU-8f2", "7"]
    assert [place[gpus.VISIBLE] for place in gpus.gpus_conditions(2)] == ["5", "GPU-8f2"]
    monkeypatch.setenv(gpus.VISIBLE, "1,2,")
    assert [place[gpus.VISIBLE] for place in gpus.gpus_conditions(9)] == ["1", "2"]
    monkeypatch.setenv(gpus.VISIBLE, "5, GPU-8f2,7")
    monkeypatch.setenv(cores.JOBS_VARIABLE, "1")
    assert [(place[gpus.VISIBLE], place["OMP_NUM_THREADS"]) for place in gpus.gpus_conditions(9)] == [("5", "12")]


@pytest.mark.parametrize("visible, named", [(None, "no GPU: "), ("", "no GPU that CUDA_VISIBLE_DEVICES='' leaves")])
def test_without_a_gpu_another_launcher_is_named(monkeypatch, visible, named):
    monkeypatch.setattr(gpus.torch.cuda, "device_count", lambda: 0)
    if visible is None:
        monkeypatch.delenv(gpus.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(gpus.VISIBLE, visible)
    with pytest.raises(InputError) as raised:
        gpus.launch(["true"])
    assert named in str(raised.value)
    assert str(raised.value).endswith("correct that, or launch with --command_launcher cores.")


def test_the_host_knows_the_launcher_and_the_estimate_its_conditions(three_gpus):
    assert host.command_launchers.REGISTRY["gpus"] is gpus.launch
    assert calibration.conditions_of("gpus", 2).environments == tuple(gpus.gpus_conditions(2))
    gpus.launch([])
