"""A protected run in this process: when it writes checkpoints, and what it does when it cannot."""

import json

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.resuming import checkpoints, hooks, protected_run
from domainbed_domainfusion.resuming.protected_run import ProtectedRun

from . import in_process


@pytest.fixture
def start(as_script, tmp_path, monkeypatch):
    """Builds ERM in a protected run of six steps."""
    job = tmp_path / "job"
    monkeypatch.setattr(protected_run, "StopSignals", lambda stop: None)
    monkeypatch.setattr(context, "_current", context.TrainingContext())
    as_script("train", "--output_dir", str(job), "--steps", "6")

    def build(minutes: float):
        run = ProtectedRun(job, minutes)
        monkeypatch.setattr(host.algorithms, "Protected", hooks.protected(host.algorithms.ERM, run), raising=False)
        return run, in_process.build("Protected")

    return build


def numbers(run: ProtectedRun) -> list[int]:
    return [each.updates for each in checkpoints.newest_first(run.folder)][::-1]


@pytest.mark.parametrize("seconds", [59, 61])
def test_with_long_intervals_the_only_checkpoint_is_before_the_last_step(start, seconds):
    """And there is none if the run, or its last checkpoint, is less than a minute old."""
    run, algorithm = start(minutes=10)
    in_process.train(algorithm, in_process.minibatches(4))
    assert numbers(run) == []
    run._saved_at -= seconds
    in_process.train(algorithm, in_process.minibatches(1))
    assert numbers(run) == ([5] if seconds > 60 else [])
    in_process.train(algorithm, in_process.minibatches(1))
    assert numbers(run) == ([5] if seconds > 60 else [])
    run.lock.release()


def test_a_stop_signal_makes_a_checkpoint_and_ends_with_its_status(start):
    run, algorithm = start(minutes=10)
    in_process.train(algorithm, in_process.minibatches(2))
    with pytest.raises(SystemExit) as ended:
        run.stop(15)
    assert ended.value.code == 143 and numbers(run) == [2]
    run.lock.release()


def test_a_stop_signal_in_a_step_lets_it_end(start, monkeypatch):
    run, algorithm = start(minutes=10)
    step = host.algorithms.ERM.update

    def signalled(self, minibatches, unlabeled=None):
        run.stop(12)
        return step(self, minibatches, unlabeled)

    monkeypatch.setattr(host.algorithms.ERM, "update", signalled)
    with pytest.raises(SystemExit) as ended:
        in_process.train(algorithm, in_process.minibatches(1))
    assert ended.value.code == 140 and numbers(run) == [1]
    run.lock.release()


def test_training_goes_on_when_the_disk_fills(start, monkeypatch, capsys):
    run, algorithm = start(minutes=0)
    in_process.train(algorithm, in_process.minibatches(1))

    def full(*arguments):
        raise InputError("Cannot write it (No space left on device).")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write", full)
        in_process.train(algorithm, in_process.minibatches(2))
    printed = capsys.readouterr().out
    assert printed == (
        "Cannot write it (No space left on device). Training goes on; a checkpoint is tried again every 0 minutes.\n"
    )
    assert numbers(run) == [1]
    in_process.train(algorithm, in_process.minibatches(1))  # there is room again
    assert numbers(run) == [1, 4]
    run.lock.release()


def test_training_goes_on_when_the_journal_cannot_be_written(start, monkeypatch, capsys):
    run, algorithm = start(minutes=0)
    in_process.train(algorithm, in_process.minibatches(1))

    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run._journal, "append", full)
    in_process.train(algorithm, in_process.minibatches(3))
    assert capsys.readouterr().out == (
        f"Cannot write in {run.folder} (No space left on device): training goes on without checkpoints; the last one "
        "stays.\n"
    )
    assert numbers(run) == [1]
    run.lock.release()


def test_a_disk_without_room_ends_the_job_before_it_trains(start, monkeypatch):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"The checkpoints of this job take .* GB, but .* has 0.00 GB free"):
        start(minutes=10)


def test_rows_of_a_run_without_checkpoints_are_set_aside(start, tmp_path, capsys):
    (tmp_path / "job").mkdir()
    rows = tmp_path / "job" / "results.jsonl"
    rows.write_text(json.dumps({"step": 0}) + "\n")
    run, _ = start(minutes=10)
    assert not rows.exists() and (tmp_path / "job" / "results-set-aside-1.jsonl").exists()
    assert "they lie in results-set-aside-1.jsonl now" in capsys.readouterr().out
    run.lock.release()
