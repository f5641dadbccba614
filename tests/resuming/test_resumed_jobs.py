"""Jobs of the host's train script: killed, started again, and compared with the uninterrupted run bit by bit."""

import json
import shutil

import pytest
import torch

from . import jobs


def test_a_killed_domainfusion_ends_as_the_uninterrupted_one(runner, data, uninterrupted, tmp_path):
    """Killed in its third round; the newest checkpoint is damaged then, so the one before it is used."""
    job, whole = tmp_path / "job", uninterrupted("DomainFusion")
    status, _ = runner.run(job, data, "DomainFusion", "round:7")
    assert status == -9
    _, newest = sorted((job / "resume").glob("checkpoint-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    status, printed = runner.run(job, data, "DomainFusion")
    assert status == 0, printed
    assert f"{newest.with_suffix('.json')} is damaged (its safetensors file does not hold what was written)" in printed
    assert "Continued after step" in printed
    assert jobs.differences(whole, job) == []
    assert not (job / "resume").exists()  # the checkpoints of a job that is done are removed
    done = json.loads((whole / "results.jsonl").read_text().splitlines()[-1])
    assert done["generated_images"] > 0 and done["ld_loss"] != 0  # the comparison had something to compare


def test_an_average_of_the_weights_goes_on(runner, data, uninterrupted, tmp_path):
    """Killed in an evaluation. SWAD's average also reads loaders in its steps; `test_killed_jobs` has the others."""
    hparams = {"weight_average": "swad", "swad_converge": 2, "swad_tolerance": 2}
    whole = uninterrupted("ERM", **hparams)
    assert "model.pkl" in jobs.differences(uninterrupted("ERM"), whole)
    assert runner.run(tmp_path, data, "ERM", "evaluation:22", **hparams)[0] == -9
    status, printed = runner.run(tmp_path, data, "ERM", **hparams)
    assert status == 0, printed
    assert "Continued after step" in printed
    assert jobs.differences(whole, tmp_path) == []


def test_the_comparison_sees_one_bit(uninterrupted, tmp_path):
    whole, other = uninterrupted("DomainFusion"), tmp_path / "other"
    shutil.copytree(whole, other)
    assert jobs.differences(whole, other) == []
    model = torch.load(other / "model.pkl", weights_only=False)
    next(iter(model["model_dict"].values())).view(-1).view(torch.int32)[0] ^= 1
    torch.save(model, other / "model.pkl")
    picture = next(other.rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"0")
    text = (other / "results.jsonl").read_text()
    (other / "results.jsonl").write_text(text.replace('"loss": 0', '"loss": 1', 1))
    assert jobs.differences(whole, other) == ["results.jsonl", "model.pkl", "generated"]


@pytest.fixture(scope="module")
def stopped(runner, data, tmp_path_factory):
    """The folder of an ERM that was killed after some checkpoints."""
    job = tmp_path_factory.mktemp("stopped") / "job"
    assert runner.run(job, data, "ERM", "update:6")[0] == -9
    return job


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "job")


def test_another_runs_checkpoint_is_refused_in_one_sentence(runner, data, copy):
    status, printed = runner.run(copy, data, "ERM", lr=0.25)
    assert status == 1
    assert printed.splitlines()[-1] == (
        f"The checkpoints in {copy / 'resume'} are another run's (hparams lr: 5e-05 there, 0.25 here): start that run "
        "again, choose another output folder, or delete that folder to train from the beginning."
    )
    assert "Traceback" not in printed


def test_without_being_asked_nothing_is_kept(uninterrupted):
    assert not (uninterrupted("DomainFusion") / "resume").exists()
