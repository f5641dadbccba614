"""What a results row says of Latent Distillation, against the same numbers computed another way."""

import copy

import pytest
import torch
import torch.nn.functional as F

from domainbed_domainfusion.algorithms.distillation_term import gradient_ratio
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.seeding import generator_of

FAST = {"denoising_steps": 2, "generation_interval": 1, "gallery": 0}


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda **hparams: host_run("DomainFusion", ldm=tiny_ldm, **{**FAST, **hparams})


def _seen_at(step: int, n: int) -> torch.Tensor:
    """The order in which LD sees the n images of a step."""
    return torch.randperm(n, generator=generator_of(0, "ld images", step))


@pytest.mark.parametrize("ld_input", ["raw", "generated"])
def test_the_ratio_is_that_of_two_backward_passes_to_the_logits(run, ld_input):
    """Both losses written out on logits of their own, with the coefficients that the run itself computed."""
    r = run(lambda1=0.7, lambda2=3.0, lambda3=0.4, ld_input=ld_input, ld_images=0)
    r.update(1)
    ours, recorded = r.algorithm, []
    coefficients = ours.distillation.coefficients
    ours.distillation.coefficients = lambda *given: recorded.append(coefficients(*given)) or recorded[-1]
    plain = copy.deepcopy(ours.network)
    minibatches = next(r.minibatches)
    x, y = (torch.cat(parts) for parts in zip(*minibatches))
    x_gen, y_gen, _ = ours.generate_dataset.minibatch(ours.step)
    values = ours.update(minibatches)
    _, a = recorded[0]

    logits = plain(torch.cat([x, x_gen])).detach().requires_grad_()
    raw, generated = logits[: len(x)], logits[len(x) :]
    seen, labels = (raw, y) if ld_input == "raw" else (generated, y_gen)
    p = seen.softmax(-1)[range(len(labels)), labels]
    ce = 0.7 * F.cross_entropy(raw, y) + 0.4 * F.cross_entropy(generated, y_gen)
    (of_ce,) = torch.autograd.grad(ce, logits, retain_graph=True)
    ld = 3.0 * (a * p[_seen_at(ours.step - 1, len(labels))]).mean()
    (of_ld,) = torch.autograd.grad(ld, logits)
    assert values["ld_gradient_ratio"] == pytest.approx((of_ld.norm() / of_ce.norm()).item(), rel=1e-4)


def test_the_ratio_grows_with_lambda2(run):
    small, large = (run(lambda2=weight).update(1)[0]["ld_gradient_ratio"] for weight in (0.5, 5.0))
    assert small > 0 and large == pytest.approx(10 * small, rel=1e-3)


def test_without_ld_the_ratio_is_zero(run):
    assert run(lambda2=0.0).update(1)[0]["ld_gradient_ratio"] == 0.0
    logits = torch.zeros(2, 3, requires_grad=True)
    assert gradient_ratio(torch.zeros(()), F.cross_entropy(logits, torch.tensor([0, 1])), logits, logits) == 0.0


def test_the_groups_below_and_above_one_half(run, monkeypatch):
    """Known p and a: each group's mean a comes back from its part and its share."""
    p = torch.tensor([0.1, 0.2, 0.6, 0.9, 0.4, 0.7, 0.8, 0.95])
    a = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, -7.0, 8.0])
    r = run(ld_input="raw", ld_images=0, lambda3=0.0)
    monkeypatch.setattr(LatentDistillation, "coefficients", lambda *_: (torch.ones(8), a))
    softmax = torch.Tensor.softmax

    def known(logits, dim):
        """Makes the confidence of the true class p, in the order in which LD sees the images."""
        return softmax(logits, dim) * 0 + known.rows if logits.requires_grad else softmax(logits, dim)

    order = _seen_at(0, 8)
    rows = torch.zeros(8, 4)
    rows[order] = p[:, None].expand(8, 4)
    known.rows = rows
    monkeypatch.setattr(torch.Tensor, "softmax", known)
    (values,) = r.update(1)
    below = p < 0.5
    assert values["ld_coefficient"] == pytest.approx(a.mean().item())
    assert values["ld_share_negative"] == pytest.approx(0.5)
    assert values["ld_coefficient_below"] / values["ld_share_below"] == pytest.approx(a[below].mean().item(), rel=1e-5)
    above = values["ld_coefficient_above"] / (1 - values["ld_share_below"])
    assert above == pytest.approx(a[~below].mean().item(), rel=1e-5)


@pytest.mark.parametrize("interval", [1, 3])
def test_every_kth_step_has_ld_with_k_times_its_weight(run, interval):
    """Beside a run with LD in every step: the coefficients of a step are the same, the loss has them k times."""
    shared = {"ld_input": "raw", "ld_images": 0, "lambda3": 0.0, "lr": 1e-12, "resnet_dropout": 0.0}
    every, some = (run(**shared, ld_interval=k).update(7) for k in (1, interval))
    for step, (one, other) in enumerate(zip(every, some)):
        if step % interval:
            assert other["loss"] == pytest.approx(other["raw_loss"]) and other["ld_gradient_ratio"] == 0
            assert not [
                name for name in other if name.startswith("ld_") and name not in ("ld_gradient_ratio", "ld_seconds")
            ]
            assert other["confidence"] == pytest.approx(one["confidence"], rel=1e-5)
        else:
            assert other["ld_coefficient"] == pytest.approx(one["ld_coefficient"], rel=1e-4)
            assert other["ld_gradient_ratio"] == pytest.approx(interval * one["ld_gradient_ratio"], rel=1e-4)
            added = [each["loss"] - each["raw_loss"] for each in (one, other)]
            assert added[1] == pytest.approx(interval * added[0], rel=1e-3)


def test_at_generation_the_interval_changes_nothing(run):
    one, other = (run(ld_when="generation", ld_interval=k).update(3) for k in (1, 2))
    assert [row["ld_gradient_ratio"] for row in one] == [row["ld_gradient_ratio"] for row in other]


def test_every_reading_trains(run):
    for hparams in (
        {"ld_preset": "listing"},
        {"ld_preset": "score"},
        {"ld_gradient": "guidance", "ld_guidance_scale": 5.0, "ld_stratified": True},
    ):
        values = run(**hparams).update(2)
        assert all(torch.tensor(list(row.values())).isfinite().all() for row in values)
        assert values[-1]["ld_gradient_ratio"] > 0
