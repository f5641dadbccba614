"""SDA: its sum of logits, its generated images, and the copy of the classifier for each checkpoint's weights."""

import copy

import pytest
import torch
from torch import nn

from domainbed_domainfusion.algorithms import sda
from domainbed_domainfusion.algorithms.by_image import digests
from domainbed_domainfusion.algorithms.tuned_copy import fine_tuned_copy
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.projection import Projection
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pixels import PixelRange
from domainbed_domainfusion.seeding import generator_of, seed_of

from ..conftest import WiredDigits

QUICK = {"sda_steps": 4, "sda_noised": 2, "sda_images": 3, "sda_generation_steps": 2, "sda_epochs": 2, "sda_batch": 5}


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda **hparams: host_run("SDA", **{"ldm": tiny_ldm, **QUICK, **hparams})


@pytest.fixture
def projected(monkeypatch):
    """The number of images of every call of the projection."""
    found, call = [], Projection.__call__
    monkeypatch.setattr(Projection, "__call__", lambda self, x, seeds: found.append(len(x)) or call(self, x, seeds))
    return found


def images(r, count=5):
    return torch.stack([r.dataset[0][i][0] for i in range(count)])


def projection(ours):
    """The same as SDA's, built from the numbers above."""
    ldm = ours._model.ldm
    return Projection(ldm, ldm.embed([""]), steps=4, noised=2, weight=6.0, factor=4)


def test_the_answer_is_the_sum_of_logits_of_two_classifiers_on_two_images(run):
    r = run()
    r.update(2)
    ours, x = r.algorithm.eval(), images(r)
    found = ours.predict(x)
    seeds = [seed_of(0, "SDA projection", key) for key in digests(x)]
    moved = ((projection(ours)(x * 2 - 1, seeds) + 1) / 2 * 255).round() / 255
    copied = ours.tuned_copy(x.device)
    torch.testing.assert_close(found, ours.network(x).detach() + copied(moved), rtol=0, atol=1e-4)
    assert not torch.allclose(copied(moved), ours.network(moved).detach(), atol=1e-5)
    half = run(sda_weight=0.5).algorithm
    half.load_state_dict(ours.state_dict())
    torch.testing.assert_close(
        half.eval().predict(x), ours.network(x).detach() + 0.5 * copied(moved), rtol=0, atol=1e-4
    )


@torch.no_grad()
def test_generated_images_are_text_to_image_of_each_class_and_projected(run):
    ours = (r := run()).algorithm
    found, labels = ours.synthetic(torch.device("cpu"))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] and found.shape == (12, 3, 32, 32)
    model = ours._model
    assert model.prompts.texts == [f"a photo of a {name}" for name in r.dataset.CLASS_NAMES]
    sampler = CandidateSampler(model.ldm, model.prompts, steps=2, guidance_scale=7.5, source="prompt")
    blank = torch.zeros(1, 3, 32, 32)
    for row in (1, 7):
        made = sampler.sample(blank, labels[row : row + 1], [[seed_of(0, "SDA image", row)]]).images[:, 0]
        expected = projection(ours)(made, [seed_of(0, "SDA image's projection", row)])[0]
        torch.testing.assert_close(found[row].float(), (expected + 1) / 2 * 255, rtol=0, atol=0.6)


def test_fine_tuning_is_sgd_with_momentum_whose_rate_falls_twice():
    """On a linear classifier in float64, as formulas: g + wd·θ, v ← 0.9 v + g, θ ← θ − lr·v; 22 epochs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).double()
    stored = torch.randint(256, (7, 3, 2, 2), dtype=torch.uint8)
    labels = torch.arange(7) % 3
    hparams = {"sda_lr": 0.1, "sda_epochs": 22, "sda_batch": 4}
    before = network[1].weight.detach().clone()
    pixels = PixelRange((3, 2, 2))
    pixels.to_classifier = lambda images: images.double() / 2 + 0.5
    tuned = fine_tuned_copy(network, stored, labels, pixels, hparams, (1, "test"))
    assert torch.equal(network[1].weight, before) and not any(p.requires_grad for p in tuned.parameters())

    theta, v = before.clone(), torch.zeros_like(before)
    for epoch in range(22):
        rate = 0.1 if epoch < 10 else 0.01 if epoch < 20 else 0.001
        for rows in torch.randperm(7, generator=generator_of(1, "test", epoch)).split(4):
            x = stored[rows].flatten(1).double() / 255
            p = (x @ theta.T).softmax(1)
            g = (p - torch.eye(3).double()[labels[rows]]).T @ x / len(rows) + 1e-4 * theta
            v = 0.9 * v + g
            theta = theta - rate * v
    torch.testing.assert_close(tuned[1].weight, theta, rtol=0, atol=1e-6)


def test_dropout_in_it_is_seeded_and_moves_no_random_number():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    stored, labels = torch.randint(256, (7, 3, 2, 2), dtype=torch.uint8), torch.arange(7) % 3
    hparams, found = {"sda_lr": 0.1, "sda_epochs": 3, "sda_batch": 4}, []
    for start, identity in ((1, "a"), (2, "a"), (1, "b")):
        torch.manual_seed(start)
        expected = torch.rand(1)
        torch.manual_seed(start)
        found.append(fine_tuned_copy(network, stored, labels, PixelRange((3, 2, 2)), hparams, (identity,))[2].weight)
        assert torch.equal(torch.rand(1), expected)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_each_checkpoint_has_a_copy_of_its_own_weights_and_splits_share_it(run, monkeypatch):
    tuned, fine_tune = [], fine_tuned_copy

    def spy(network, *rest):
        tuned.append(copy.deepcopy(network.state_dict()))
        return fine_tune(network, *rest)

    monkeypatch.setattr(sda, "fine_tuned_copy", spy)
    r = run(lr=0.01)
    ours, x = r.algorithm, images(r, 2)
    for step in range(2):
        r.update(1)
        for _ in range(3):  # the host calls both for each split
            ours.eval().predict(x)
            ours.train()
        assert len(tuned) == step + 1
        assert all(torch.equal(tuned[-1][name], value) for name, value in ours.network.state_dict().items())
    weights = copy.deepcopy(ours.state_dict())
    fresh = run().algorithm
    fresh.load_state_dict(weights)
    assert torch.equal(fresh.eval().predict(x), ours.eval().predict(x))


def test_images_are_generated_and_projected_once_in_a_run(run, projected):
    r = run()
    ours, x = r.algorithm, images(r)
    first = ours.eval().predict(x)
    assert sorted(projected) == [5, 12]
    ours.train()
    r.update(1)
    assert not torch.equal(ours.eval().predict(torch.cat([x, x[:1]]))[:5], first)
    assert len(projected) == 2
    fresh = copy.deepcopy(ours)
    assert torch.equal(fresh.predict(x), ours.predict(x)) and len(projected) == 4


def test_what_does_not_fit_into_the_cache_is_made_again(run, projected):
    r = run(test_time_cache_gb=3 * 3 * 32 * 32 / 2**30)
    ours, x = r.algorithm.eval(), images(r)
    torch.testing.assert_close(ours.predict(x), ours.predict(x), rtol=0, atol=1e-3)  # another batch rounds otherwise
    assert sorted(projected) == [2, 5, 12]


def test_answers_depend_on_no_other_image_and_not_on_the_batch_of_the_model(run):
    whole = (r := run()).algorithm.eval().predict(x := images(r))
    torch.testing.assert_close(run().algorithm.eval().predict(x.flip(0)).flip(0), whole, rtol=0, atol=1e-3)
    one = run(test_time_batch=1).algorithm.eval()
    torch.testing.assert_close(torch.cat([one.predict(image[None]) for image in x]), whole, rtol=0, atol=1e-3)


def test_a_weight_of_zero_is_erm_and_loads_no_model(run, host_run):
    trained = []
    for make in (lambda: host_run("ERM"), lambda: run(sda_weight=0.0)):
        r = make()
        losses = [row["loss"] for row in r.update(3)]
        trained.append((losses, r.algorithm.eval().predict(images(r))))
    assert trained[0][0] == trained[1][0] and torch.equal(trained[0][1], trained[1][1])
    assert r.algorithm._model is None and r.algorithm._tuned is None


def test_no_image_of_the_dataset_is_read_for_an_evaluation(run):
    r = run(dataset=WiredDigits)
    r.algorithm.eval().predict(torch.rand(2, 3, 32, 32))
    assert all(environment.read == set() for environment in r.dataset.datasets)


def test_outside_a_training_run_it_answers_too(tiny_ldm):
    values = {**host.hparams_registry.default_hparams("SDA", "Debug28"), **QUICK, "ldm": tiny_ldm, "image_size": 32}
    made = host.algorithms.SDA((3, 28, 28), 2, 3, values).eval()
    with torch.no_grad():
        assert made.predict(x := torch.rand(2, 3, 28, 28)).shape == (2, 2)
        assert not torch.equal(made.predict(x), made.network(x))


def test_more_noised_steps_than_the_chain_has_are_refused(run):
    with pytest.raises(
        InputError, match="The hparam sda_noised is 5, but the chain has 4 steps: give at most sda_steps."
    ):
        run(sda_noised=5)


def test_its_defaults_are_those_of_the_paper_where_the_paper_has_them():
    values = host.hparams_registry.default_hparams("SDA", "PACS")
    paper = {"sda_steps": 100, "sda_noised": 50, "sda_scale": 6.0, "sda_low_pass": 4, "sda_images": 50, "sda_lr": 5e-4,
             "sda_epochs": 15, "sda_batch": 64, "sda_weight": 1.0, "image_size": 256}  # fmt: skip
    assert {name: values[name] for name in paper} == paper
