"""UDIM against its steps written out in float64, image by image and entry by entry."""

import pytest
import torch

from domainbed_domainfusion.algorithms import udim
from domainbed_domainfusion.hosting import context, host

from . import two_layers as net

RHO, STEP, WEIGHT = 0.3, 2.0, 0.6


@pytest.fixture(autouse=True)
def steps_of_a_run(monkeypatch):
    monkeypatch.setattr(context.TrainingContext, "total_steps", 10)


def rows_of(theta, x, y) -> list[list[torch.Tensor]]:
    """(p - onehot)·hᵀ and p - onehot for each image: the gradients of W2 and b2."""
    h, p = net.features(theta, x), net.probabilities(theta, x)
    rows = []
    for i in range(len(x)):
        at_logits = torch.stack([p[i, c] - float(y[i] == c) for c in range(net.CLASSES)])
        weight = torch.stack([at_logits[c] * h[i, k] for c in range(net.CLASSES) for k in range(net.HIDDEN)])
        rows.append([weight, at_logits])
    return rows


def inconsistency(theta, x, unknown, y):
    """Variances of both domains' gradients about the first one's mean; loops over parameters, entries and images."""
    known, other = rows_of(theta, x, y), rows_of(theta, unknown, y)
    squares, entries, size = 0.0, 0, 0.0
    for k in range(2):
        for entry in range(len(known[0][k])):
            mean = sum(row[k][entry] for row in known) / len(known)
            first = sum((row[k][entry] - mean) ** 2 for row in known) / len(known)
            second = sum((row[k][entry] - mean) ** 2 for row in other) / len(other)
            middle = (first + second) / 2
            squares = squares + ((first - middle) ** 2 + (second - middle) ** 2) / 2
            entries += 1
        size = size + sum((row[k] ** 2).sum() for row in other) / len(other) / len(other[0][k])
    return squares / entries + size


def unknown_domain(theta, x, y, kind):
    """One ascent step of L + ρ‖∇L‖ by central differences of the input, not by a double backward pass."""

    def objective(pixels):
        g = net.gradient(theta, pixels, y)
        return net.loss(theta, pixels, y) + RHO * (g**2).sum().sqrt()

    def slope(function, value):
        found, h = torch.zeros_like(value), 1e-5
        for i in range(value.numel()):
            nudge = torch.zeros_like(value)
            nudge.view(-1)[i] = h
            found.view(-1)[i] = (function(value + nudge) - function(value - nudge)) / (2 * h)
        return found

    if kind == "pixels":
        along = slope(objective, x)
        return x + STEP * along / (along**2).sum(0, keepdim=True).sqrt()
    mean = x.mean((2, 3), keepdim=True)
    deviation = (((x - mean) ** 2).sum((2, 3), keepdim=True) / 3 + 1e-5) ** 0.5
    plain = (x - mean) / deviation
    new_mean = mean + STEP * slope(lambda value: objective(plain * deviation + value), mean)
    new_deviation = deviation + STEP * slope(lambda value: objective(plain * value + mean), deviation)
    return plain * new_deviation + new_mean


@pytest.mark.parametrize("kind", ["pixels", "style"])
def test_the_unknown_domain_is_one_ascent_step_in_input_space(kind):
    ours = net.algorithm("UDIM", rho=RHO, udim_input=kind, udim_step=STEP)
    (batch,) = net.minibatches(1)
    x, y = net.joined(batch)
    loss, gradients, unknown = ours.unknown_domain(x, y, list(ours.network.parameters()))
    theta = net.flat(ours)
    assert abs(loss.item() - net.loss(theta, x, y).item()) < 1e-12
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(flat, net.gradient(theta, x, y), rtol=0, atol=1e-12)
    torch.testing.assert_close(unknown, unknown_domain(theta, x, y, kind), rtol=0, atol=1e-7)
    assert (unknown - x).abs().max() > 0.01


@pytest.mark.parametrize("per_domain", [False, True])
@pytest.mark.parametrize("kind", ["pixels", "style"])
def test_its_steps_are_sam_and_then_sam_with_the_inconsistency(kind, per_domain):
    hparams = {"udim_warm_up": 0.2, "udim_weight": WEIGHT, "udim_step": STEP, "udim_per_domain": per_domain}
    ours = net.algorithm("UDIM", rho=RHO, udim_input=kind, **hparams)
    theta, adam = net.flat(ours), net.Adam()
    for step, batch in enumerate(net.minibatches(5)):
        x, y = net.joined(batch)
        before, expected = net.loss(theta, x, y).item(), 0.0
        g = net.gradient(theta, x, y)
        direction = net.gradient(theta + RHO * g / (g**2).sum().sqrt(), x, y)
        if step >= 2:
            ours_on_twin = net.algorithm("UDIM", rho=RHO, udim_input=kind, udim_step=STEP)
            torch.nn.utils.vector_to_parameters(theta, ours_on_twin.network.parameters())
            _, _, unknown = ours_on_twin.unknown_domain(x, y, list(ours_on_twin.network.parameters()))
            at = theta.clone().requires_grad_()
            parts = [slice(0, 4), slice(4, 8)] if per_domain else [slice(0, 8)]
            penalty = sum(inconsistency(at, x[part], unknown[part], y[part]) for part in parts)
            direction = direction + WEIGHT * torch.autograd.grad(penalty, at)[0]
            expected = penalty.item()
        theta = adam.step(theta, direction)
        values = ours.update(batch)
        assert abs(values["loss"] - before) < 1e-10 and abs(values["inconsistency"] - expected) < 1e-10
    torch.testing.assert_close(net.flat(ours), theta, rtol=0, atol=1e-10)
    assert expected > 1e-3


def test_with_weight_zero_it_is_sam():
    """Up to float noise: a gradient that can be differentiated again is summed in another order."""
    trained = []
    for name in ("SAM", "UDIM"):
        values = {**host.hparams_registry.default_hparams("UDIM", "Debug28"), "udim_weight": 0.0}
        torch.manual_seed(0)
        made = host.algorithms.get_algorithm_class(name)((3, 28, 28), 2, 3, values).double()
        batches = [[(torch.randn(4, 3, 28, 28, dtype=torch.float64), torch.randint(2, (4,)))] for _ in range(4)]
        losses = torch.tensor([made.update(batch)["loss"] for batch in batches], dtype=torch.float64)
        trained.append([losses, *made.network.parameters()])
    for sam, ours in zip(*trained):
        torch.testing.assert_close(ours, sam, rtol=0, atol=1e-9)


def test_gradients_of_each_image_by_a_classifier_of_several_layers():
    """The host's `nonlinear_classifier`: one backward pass per image."""
    torch.manual_seed(0)
    classifier = host.networks.Classifier(8, 3, True).double()
    features, y = torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    found = udim.gradients_of_each_image(classifier, features, y)
    for i in range(4):
        loss = torch.nn.functional.cross_entropy(classifier(features[i : i + 1]), y[i : i + 1])
        for (name, gradients), expected in zip(found.items(), torch.autograd.grad(loss, list(classifier.parameters()))):
            torch.testing.assert_close(gradients[i], expected.flatten(), rtol=0, atol=1e-12)
