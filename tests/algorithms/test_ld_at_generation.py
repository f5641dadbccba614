"""LD when images are generated: one coefficient per image and round, and the gradient of a later step."""

import copy

import pytest
import torch
import torch.nn.functional as F

from domainbed_domainfusion import pixels
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.seeding import seed_of

FAST = {"denoising_steps": 2, "generation_interval": 1, "gallery": 0, "ld_when": "generation"}


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda **hparams: host_run("DomainFusion", ldm=tiny_ldm, **{**FAST, **hparams})


def test_each_image_has_the_coefficient_of_its_own_p_when_it_was_generated(run):
    """Image by image, with θ and the images as they are right after the round, before the step's update."""
    r = run(generation_budget=6, generation_batch=4)
    ours, at_round = r.algorithm, {}
    ours.load_diffusion(torch.device("cpu"))
    of_round = ours.ld_term.of_round

    def recorded(dataset, judge, step):
        network = copy.deepcopy(ours.network).eval()
        of_round(dataset, judge, step)
        at_round[dataset.rounds] = (network, ours.ld_term._round_slopes.clone())

    ours.ld_term.of_round = recorded
    r.update(5)  # rounds at steps 0 and 4
    assert list(at_round) == [1, 2]
    network, slopes = at_round[2]
    store = ours.generate_dataset
    for row, (split, index) in enumerate(store.keys):
        image, label = store.version(row)
        x, y = pixels.from_store(image[None]), torch.tensor([label])
        with torch.no_grad():
            p = network(x / 2 + 0.5).softmax(-1)[0, label]
        seed = seed_of(r.context.seed, "ld", store.in_splits[split].environment, index, 2)
        _, a = ours.distillation.coefficients(x, y, p[None], [seed])
        torch.testing.assert_close(slopes[row], a[0].cpu(), rtol=1e-3, atol=1e-6)
    assert slopes.abs().max() > 0 and not torch.equal(slopes, at_round[1][1])


def test_the_gradient_of_a_step_uses_them_with_the_present_p(run):
    r = run(lambda1=0.7, lambda2=3.0, lambda3=0.4)
    r.update(1)
    ours = r.algorithm
    plain = copy.deepcopy(ours.network)
    minibatches = next(r.minibatches)
    x, y = (torch.cat(parts) for parts in zip(*minibatches))
    assert not ours.generates_at(ours.step)
    x_gen, y_gen, rows = ours.generate_dataset.minibatch(ours.step)
    a = ours.ld_term._round_slopes[rows]
    p = plain(x_gen).softmax(-1)[range(len(y_gen)), y_gen]
    loss = 0.7 * F.cross_entropy(plain(x), y) + 3.0 * (a * p).mean() + 0.4 * F.cross_entropy(plain(x_gen), y_gen)
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    values = ours.update(minibatches)
    for weight, gradient in zip(ours.network.parameters(), expected):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)
    assert values["ld_coefficient"] == pytest.approx(a.mean().item(), rel=1e-5)


def test_ld_is_asked_in_rounds_only_and_says_nothing_before_the_first(run, monkeypatch):
    asked, coefficients = [], LatentDistillation.coefficients
    monkeypatch.setattr(
        LatentDistillation,
        "coefficients",
        lambda self, images, *rest: asked.append(len(images)) or coefficients(self, images, *rest),
    )
    r = run(generation_interval=2, generation_budget=6)
    values = r.update(4)
    assert asked == [] and all(row["ld_loss"] == row["ld_gradient_ratio"] == 0 for row in values)
    r.update(4)  # the round of step 4
    assert sum(asked) == 6


def test_not_finite_coefficients_are_left_out_of_every_step_and_counted_once_a_round(run, monkeypatch, capsys):
    coefficients = LatentDistillation.coefficients

    def one_bad(self, images, *rest):
        value, a = coefficients(self, images, *rest)
        a[0] = float("nan")
        return value, a

    monkeypatch.setattr(LatentDistillation, "coefficients", one_bad)
    r = run(generation_budget=8, generation_batch=8)
    values = r.update(4)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in values)
    assert sum(row["ld_not_finite"] for row in values) > 0
    assert capsys.readouterr().out.count("not finite for 1 of 8 images") == 1


def test_a_run_started_again_computes_the_same_coefficients(run, as_script, tmp_path):
    slopes = []
    for steps in (6, 6):
        as_script("train", "--output_dir", str(tmp_path), "--steps", "10")
        r = run(save_generated="all", lr=1e-3)
        r.update(steps)
        slopes.append(r.algorithm.ld_term._round_slopes)
    assert torch.equal(*slopes)


def test_the_batch_of_generation_changes_no_coefficient(run):
    """Also with stratified timesteps, whose strata are those of a fixed number of images."""
    slopes = []
    for batch in (2, 5):
        r = run(generation_budget=8, generation_batch=batch, ld_stratified=True)
        r.update(1)
        slopes.append(r.algorithm.ld_term._round_slopes)
    torch.testing.assert_close(*slopes, rtol=1e-2, atol=1e-5)
