"""What the methods share that use the diffusion model at test time: training, evaluations, copies, resuming."""

import copy
import itertools
import json
import pickle
import runpy
import sys

import pytest
import torch

from domainbed_domainfusion.algorithms.dsi import DSI
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.hosting import hparams as table
from domainbed_domainfusion.resuming.capture import Capture
from domainbed_domainfusion.resuming.restore import restore
from domainbed_domainfusion.runs.trained_model import TrainedModel

from ..conftest import WiredDigits
from ..resuming import in_process
from .beside_erm import assert_it_is_erm

#: Settings with a few U-Net evaluations for each image.
QUICK = {
    "DSI": {"dsi_steps": 2, "dsi_starts": [1], "dsi_finetune_steps": 0},
    "SDA": {"sda_steps": 2, "sda_noised": 1, "sda_images": 2, "sda_generation_steps": 1, "sda_epochs": 1},
    "DiffusionTTA": {"tta_steps": 2, "tta_draws": 2, "tta_lr": 0.5},
}
each = pytest.mark.parametrize("name", QUICK)


@pytest.fixture(autouse=True)
def unsure_then_sure(monkeypatch):
    """DSI takes every image's first ensemble, whatever the weights: its gate is asked about images, then ensembles."""
    turns = itertools.cycle([False, True])
    monkeypatch.setattr(DSI, "is_sure", lambda self, logits: torch.full((len(logits),), next(turns)))


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda name, **hparams: host_run(name, **{"ldm": tiny_ldm, **QUICK[name], **hparams})


def some_images(r, count=3):
    return torch.stack([r.dataset[0][i][0] for i in range(count)])


def test_all_of_them_are_here():
    assert set(QUICK) == set(table.TEST_TIME) <= set(host.algorithms.ALGORITHMS)


@each
def test_training_is_erms_bit_for_bit(name, tiny_ldm):
    assert_it_is_erm(name, ldm=tiny_ldm, **QUICK[name])


@each
def test_evaluations_change_nothing_of_it(name, run, host_run):
    """With an evaluation between the steps: losses, weights, and random numbers."""
    trained = []
    for make in (lambda: host_run("ERM"), lambda: run(name)):
        r = make()
        losses = []
        for _ in range(3):
            losses += [row["loss"] for row in r.update(1)]
            r.algorithm.eval()
            before = copy.deepcopy(r.algorithm.state_dict())
            r.algorithm.predict(some_images(r))
            assert all(torch.equal(before[key], value) for key, value in r.algorithm.state_dict().items())
            assert all(weight.requires_grad for weight in r.algorithm.parameters())
            r.algorithm.train()
        trained.append((losses, r.algorithm.state_dict(), torch.rand(2)))
    (erm, erm_weights, erm_next), (ours, our_weights, our_next) = trained
    assert erm == ours and torch.equal(erm_next, our_next) and erm_weights.keys() == our_weights.keys()
    assert all(torch.equal(erm_weights[key], our_weights[key]) for key in erm_weights)


@each
def test_its_answers_are_not_erms_and_in_training_mode_they_are(name, run):
    r = run(name)
    x = some_images(r)
    ours = r.algorithm.eval()
    with torch.no_grad():
        erm = ours.network(x)
        found = ours.predict(x)
    assert found.shape == erm.shape and not torch.allclose(found, erm, atol=1e-4)
    assert torch.equal(ours.train().predict(x), ours.network(x))


@each
def test_with_last_the_earlier_evaluations_are_erms(name, run, as_script):
    as_script("train", "--steps", "2")
    r = run(name, test_time_when="last")
    x = some_images(r)
    same = []
    for _ in range(2):
        r.update(1)
        ours = r.algorithm.eval()
        with torch.no_grad():
            same.append(torch.equal(ours.predict(x), ours.network(x)))
        assert (ours._model is None) is same[-1]
        ours.train()
    assert same == [True, False]


@each
def test_with_last_a_model_outside_a_run_asks_the_diffusion_model(name, run, monkeypatch):
    r = run(name, test_time_when="last")
    x, ours = some_images(r), r.algorithm.eval()
    assert torch.equal(ours.predict(x), ours.network(x))
    monkeypatch.setattr(context, "_current", context.TrainingContext())
    assert not torch.allclose(ours.predict(x), ours.network(x), atol=1e-4)


@each
def test_copies_and_pickles_hold_no_diffusion_model_and_answer_the_same(name, run):
    r = run(name)
    x = some_images(r)
    ours = r.algorithm.eval()
    empty = len(pickle.dumps(ours))
    before = ours.predict(x)
    assert ours._model is not None and len(pickle.dumps(ours)) < empty + 1000
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied._model is None
        assert torch.equal(copied.predict(x), before)


@each
def test_a_run_goes_on_exactly_where_it_was_interrupted(name):
    assert in_process.differences(*in_process.whole_and_restored(name, steps=6, after=3, **QUICK[name])) == []


@each
def test_and_its_evaluations_too(name, run):
    """The restored run has not made what the whole run made in its first evaluation."""
    r, other = run(name), run(name)
    x = some_images(r)
    batches = [next(r.minibatches) for _ in range(3)]
    r.algorithm.update(batches[0])
    r.algorithm.eval().predict(x)
    r.algorithm.train()
    r.algorithm.update(batches[1])
    captured = Capture(r.algorithm)
    tree = json.loads(json.dumps(captured.tree))
    assert not restore(other.algorithm, tree, captured.tensors, lambda: other.algorithm.update(batches[2]))
    assert other.algorithm.steps_done == 2
    assert torch.equal(other.algorithm.eval().predict(x), r.algorithm.eval().predict(x))


@each
def test_the_hosts_train_script_runs_it(name, tiny_dataset, tiny_ldm, monkeypatch, tmp_path, as_script):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    given = {"ldm": tiny_ldm, "image_size": 32, "batch_size": 4, "backbone": "mnist_cnn", **QUICK[name]}
    as_script("train", *("--dataset", "TinyDigits", "--algorithm", name, "--output_dir", str(tmp_path)),
              *("--steps", "3", "--checkpoint_freq", "2", "--hparams", json.dumps(given)))  # fmt: skip
    runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2] and all(row["loss"] > 0 for row in rows)
    saved = torch.load(tmp_path / "model.pkl", weights_only=False)["model_dict"]
    assert set(saved) == set(host.algorithms.ERM((3, 32, 32), 4, 2, rows[0]["hparams"]).state_dict())
    as_script("collect_results")  # where there is no run
    restored, x = (
        TrainedModel.read(tmp_path).algorithm(torch.device("cpu"), lambda image: image),
        torch.rand(2, 3, 32, 32),
    )
    with torch.no_grad():
        assert not torch.allclose(restored.predict(x), restored.network(x), atol=1e-4)


@each
def test_no_training_step_reads_more_than_erms(name, run):
    r = run(name, dataset=WiredDigits, test_env=1)
    r.update(4)
    assert r.dataset.datasets[1].read == set()
    assert all(r.dataset.datasets[i].read <= set(r.in_splits[i].keys) for i in (0, 2))


@each
def test_every_step_counts_alike(name):
    args = {"dataset": "Debug28", "algorithm": name, "test_envs": [0], "holdout_fraction": 0.2, "steps": 7}
    values = {**host.hparams_registry.default_hparams(name, "Debug28"), **QUICK[name]}
    counted = counting.count(args, values, [20, 20, 20])
    assert (counted.raw_steps, counted.rounds, counted.ld_gradients) == (7, 0, 0)


@each
def test_a_model_that_is_not_there_stops_before_training(name, run, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        run(name, ldm=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="The hparam test_time_when is 'now', but must be one of every, last"):
        run(name, test_time_when="now")


@each
def test_an_average_of_the_weights_is_what_answers(name, run, host_run):
    answers = []
    for average in ("sma", "none"):
        r = run(name, weight_average=average, weight_average_start=1, lr=0.05)
        r.update(3)
        ours = r.algorithm.eval()
        weights = copy.deepcopy(ours.state_dict())
        x = some_images(r)
        answers.append(ours.predict(x))
        plain = run(name).algorithm
        plain.load_state_dict(weights)
        assert torch.equal(plain.eval().predict(x), answers[-1])
    assert not torch.equal(*answers)
