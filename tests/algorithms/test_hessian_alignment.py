"""HGP and Hutchinson against whole Hessians by torch.autograd.functional in float64, domain by domain."""

import pytest
import torch

from domainbed_domainfusion.algorithms import hessian_alignment
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.seeding import seed_of

from . import two_layers as net
from .beside_erm import assert_it_is_erm

HEAD = net.CLASSES * net.HIDDEN + net.CLASSES  # entries of W2 and b2, the last ones of θ
ALPHA, BETA, PROBES = 3.0, 2.0, 7
HPARAMS = {
    "HGP": {"hgp_alpha": ALPHA, "hgp_beta": BETA},
    "Hutchinson": {"hutchinson_alpha": ALPHA, "hutchinson_beta": BETA, "hutchinson_probes": PROBES},
}
each_algorithm = pytest.mark.parametrize("name", ["HGP", "Hutchinson"])


def derivatives(theta, x, y):
    """∇L and the whole Hessian by the classifier's weights; both can be differentiated by θ."""
    body, head = theta[:-HEAD], theta[-HEAD:]

    def loss(weights):
        return net.loss(torch.cat([body, weights]), x, y)

    jacobian = torch.autograd.functional.jacobian(loss, head, create_graph=True)
    return jacobian, torch.autograd.functional.hessian(loss, head, create_graph=True)


def probes(step):
    generator = torch.Generator().manual_seed(seed_of(0, "Hutchinson probes", step))
    return [2.0 * row.double() - 1 for row in torch.randint(2, (PROBES, HEAD), generator=generator)]


def curvature(name, g, hessian, step):
    if name == "HGP":
        return hessian @ g
    return sum(z * (hessian @ z) for z in probes(step)) / PROBES


def penalty(name, theta, batch, step):
    x, y = net.joined(batch)
    total, (mean_g, mean_hessian) = 0.0, derivatives(theta, x, y)
    centre = curvature(name, mean_g, mean_hessian, step).detach()
    for part in batch:
        g, hessian = derivatives(theta, *part)
        total = total + ALPHA * ((curvature(name, g, hessian, step) - centre) ** 2).sum()
        total = total + BETA * ((g - mean_g.detach()) ** 2).sum()
    return total / len(batch)


@each_algorithm
def test_its_steps_are_adam_on_the_loss_and_the_penalty_of_whole_hessians(name):
    ours = net.algorithm(name, **HPARAMS[name])
    theta, adam = net.flat(ours), net.Adam()
    for step, batch in enumerate(net.minibatches(5)):
        at = theta.clone().requires_grad_()
        extra = penalty(name, at, batch, step)
        loss = net.loss(at, *net.joined(batch)) + extra
        theta = adam.step(theta, torch.autograd.grad(loss, at)[0])
        values = ours.update(batch)
        assert values == {"loss": pytest.approx(loss.item(), abs=1e-10), "penalty": pytest.approx(extra.item())}
        assert extra > 1e-3
    torch.testing.assert_close(net.flat(ours), theta, rtol=0, atol=1e-9)


@each_algorithm
def test_without_weights_it_is_erm_bit_for_bit(name):
    assert_it_is_erm(name, **{f"{name.lower()}_alpha": 0.0, f"{name.lower()}_beta": 0.0})


@each_algorithm
def test_equal_domains_have_no_penalty(name):
    """HGP's mean loss is then each domain's; a domain's own curvature is the centre."""
    ours = net.algorithm(name, **HPARAMS[name])
    ((part, _),) = net.minibatches(1)
    assert ours.update([part, part])["penalty"] == pytest.approx(0, abs=1e-20)


def test_many_probes_estimate_the_diagonal():
    ours = net.algorithm("Hutchinson", hutchinson_probes=40_000)
    (batch,) = net.minibatches(1)
    weights = list(ours.classifier.parameters())
    x, y = batch[0]
    loss = torch.nn.functional.cross_entropy(ours.predict(x), y)
    gradients = hessian_alignment.gradient(loss, weights)[None]
    found, _ = ours.curvatures(gradients, weights)
    _, hessian = derivatives(net.flat(ours), x, y)
    torch.testing.assert_close(found[0], hessian.diagonal(), rtol=0, atol=0.01)
    assert hessian.diagonal().max() > 0.05


def test_probes_are_of_the_step():
    ours = net.algorithm("Hutchinson", hutchinson_probes=2)
    weights = list(ours.classifier.parameters())
    x, y = net.minibatches(1)[0][0]
    found = []
    for ours.step in (0, 1, 0):
        gradients = hessian_alignment.gradient(torch.nn.functional.cross_entropy(ours.predict(x), y), weights)[None]
        found.append(ours.curvatures(gradients, weights)[0])
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_a_zero_gradient_gives_finite_numbers():
    """HGP where the classifier is certain of every label."""
    ours = net.algorithm("HGP", **HPARAMS["HGP"])
    ((part, other),) = net.minibatches(1)
    ours.classifier.weight.data.zero_()
    ours.classifier.bias.data.copy_(torch.tensor([1000.0, 0.0, 0.0]))
    certain = [(x, torch.zeros_like(y)) for x, y in (part, other)]
    assert ours.update(certain) == {"loss": 0.0, "penalty": 0.0}
    assert all(torch.isfinite(weight).all() for weight in ours.parameters())


@each_algorithm
def test_frozen_parameters_take_no_part(name):
    ours = net.algorithm(name, **HPARAMS[name])
    ours.classifier.bias.requires_grad_(False)
    before = ours.classifier.bias.clone()
    ours.update(net.minibatches(1)[0])
    assert torch.equal(ours.classifier.bias, before)


@each_algorithm
def test_a_classifier_of_several_layers(name):
    """The host's `nonlinear_classifier`: the penalty's gradient reaches all of its layers."""
    hparams = host.hparams_registry.default_hparams(name, "Debug28")
    hparams = {**hparams, "nonlinear_classifier": True, **HPARAMS[name]}
    ours = host.algorithms.get_algorithm_class(name)((3, 28, 28), 2, 2, hparams)
    batch = [(torch.randn(4, 3, 28, 28), torch.randint(2, (4,))) for _ in range(2)]
    assert ours.update(batch)["penalty"] > 0
    assert all(weight.grad is not None for weight in ours.parameters())


def test_no_probe_is_refused():
    with pytest.raises(InputError, match="hutchinson_probes is 0, but must be a whole number from 1: probes of "):
        net.algorithm("Hutchinson", hutchinson_probes=0)
