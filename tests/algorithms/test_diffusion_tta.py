"""Diffusion-TTA against one graph from the weights through classifier and U-Net to the loss, in float64."""

import copy

import pytest
import torch
from torch import nn

from domainbed_domainfusion.algorithms.by_image import digests
from domainbed_domainfusion.diffusion.mixed_prompt import MixedPromptLoss
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.seeding import generator_of

from . import two_layers as net

NAMES = ["0", "1", "2"]
STEPS, DRAWS, RATE = 3, 4, 0.3


@pytest.fixture
def run(host_run, tiny_ldm):
    quick = {"ldm": tiny_ldm, "tta_steps": 2, "tta_draws": 3, "tta_lr": 0.5}
    return lambda **hparams: host_run("DiffusionTTA", **{**quick, **hparams})


@pytest.fixture
def small(tiny_ldm):
    """On the network of two layers, and the tiny diffusion model in float64."""

    def make(**hparams):
        quick = {"ldm": tiny_ldm, "image_size": 16, "tta_steps": STEPS, "tta_draws": DRAWS, "tta_lr": RATE}
        made = net.algorithm("DiffusionTTA", **{**quick, **hparams}).eval()
        ldm = LatentDiffusion.load(tiny_ldm, device="cpu", dtype="float64")
        made._model = PromptedModel(ldm, Prompts(ldm, NAMES, "a photo of a {}"))
        return made

    return make


def images(r, count=4):
    return torch.stack([r.dataset[0][i][0] for i in range(count)])


def adapted(theta, moving, x, ldm, optimizer):
    """Probabilities of x (1, …) after the steps; `moving` (0 or 1) masks θ. The graph goes through everything."""
    key = digests(x)[0]
    pixels = torch.nn.functional.interpolate(x.float().clamp(0, 1), (16, 16), mode="bilinear", antialias=True,
                                             align_corners=False)  # fmt: skip
    z = ldm.encode(pixels.double() * 2 - 1)
    prompts = [ldm.embed([f"a photo of a {name}"]) for name in NAMES]
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(STEPS):
        generator = generator_of(0, "DiffusionTTA", key, step)
        t = torch.randint(1000, (DRAWS,), generator=generator)
        noise = torch.randn(DRAWS, 4, 4, 4, generator=generator).double()
        at = theta.clone().requires_grad_()
        p = net.probabilities(at, x)[0]
        condition = sum(p[k] * prompts[k] for k in range(3)).expand(DRAWS, -1, -1)
        a = ldm.alphas_cumprod[t].double()[:, None, None, None]
        predicted = ldm._unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, encoder_hidden_states=condition).sample
        (g,) = torch.autograd.grad(((predicted - noise) ** 2).mean(), at)
        g = g * moving
        if optimizer == "sgd":
            v = 0.9 * v + g
            theta = theta - RATE * v
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            theta = theta - RATE * m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    return net.probabilities(theta, x)


@pytest.mark.parametrize("optimizer, tolerance", [("sgd", 1e-9), ("adam", 1e-4)])
@pytest.mark.parametrize("parameters", ["all", "classifier"])
def test_an_answer_is_that_of_the_adapted_weights(small, optimizer, tolerance, parameters):
    ours = small(tta_optimizer=optimizer, tta_parameters=parameters)
    theta, x = net.flat(ours), net.joined(net.minibatches(1)[0])[0][:3]
    head = net.CLASSES * net.HIDDEN + net.CLASSES
    moving = torch.ones_like(theta)
    if parameters == "classifier":
        moving[:-head] = 0
    found = ours.predict(x).softmax(-1)
    for image, row in zip(x.split(1), found):
        expected = adapted(theta, moving, image, ours._model.ldm, optimizer)[0]
        torch.testing.assert_close(row, expected.detach(), rtol=0, atol=tolerance)
        # The steps were long enough to be seen.
        assert (row - net.probabilities(theta, image)[0]).abs().max() > 20 * tolerance


def test_its_steps_lower_the_loss(small):
    """On the draws of one step, with small steps on them."""
    ours = small(tta_steps=4, tta_draws=16, tta_lr=0.05)
    x = net.joined(net.minibatches(1)[0])[0][:1]
    loss = MixedPromptLoss(ours._model.ldm, ours._model.prompts)
    z = loss.latents(ours.pixel_range.to_diffusion(x, 16))
    t, noise = ours.draws(digests(x)[0], 0, z)
    ours.draws = lambda *identity: (t, noise)
    before, after = (
        loss(z, logits.softmax(-1)[0].detach(), t, noise)[0] for logits in (ours.classify(x), ours.predict(x))
    )
    assert after < before


class WithBatchNorm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(net.INPUTS, net.HIDDEN), nn.BatchNorm1d(net.HIDDEN), nn.Tanh())


@pytest.mark.parametrize("parameters", ["all", "normalisation"])
def test_weights_gradients_and_statistics_are_put_back_bit_for_bit(small, parameters):
    ours = small(tta_parameters="all")
    ours.hparams["tta_parameters"] = parameters
    torch.manual_seed(0)
    ours.featurizer = WithBatchNorm().double()
    ours.network = nn.Sequential(ours.featurizer, ours.classifier)
    ours.network.train()(torch.randn(6, *net.SHAPE, dtype=torch.float64)).sum().backward()
    ours.eval()
    x = net.joined(net.minibatches(1)[0])[0][:2]
    state = copy.deepcopy(ours.state_dict())
    gradients = [weight.grad for weight in ours.network.parameters()]
    copies = [gradient.clone() for gradient in gradients]
    found, plain = ours.predict(x), ours.classify(x)
    assert not torch.allclose(found, plain, atol=1e-8)
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    for weight, gradient, value in zip(ours.network.parameters(), gradients, copies):
        assert weight.grad is gradient and torch.equal(gradient, value)
    moving = ours.adapted_weights()
    assert len(moving) == (2 if parameters == "normalisation" else 6)


def test_they_are_put_back_after_an_error_too(small, monkeypatch):
    ours = small()
    x, state = net.joined(net.minibatches(1)[0])[0][:1], copy.deepcopy(ours.state_dict())
    calls, call = [], MixedPromptLoss.__call__

    def failing(self, *given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *given)

    monkeypatch.setattr(MixedPromptLoss, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        ours.predict(x)
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())


def test_frozen_weights_do_not_move(small):
    ours = small()
    for weight in ours.featurizer.parameters():
        weight.requires_grad_(False)
    only = small(tta_parameters="classifier")
    x = net.joined(net.minibatches(1)[0])[0][:2]
    assert torch.equal(ours.predict(x), only.predict(x))


def test_an_answer_depends_on_no_other_image_bit_for_bit(run):
    whole = (r := run()).algorithm.eval().predict(x := images(r))
    assert torch.equal(run().algorithm.eval().predict(x.flip(0)).flip(0), whole)
    assert torch.equal(torch.cat([r.algorithm.predict(image[None]) for image in x]), whole)


def test_draws_change_with_image_step_and_run(run, as_script):
    r = run()
    z = torch.zeros(1, 4, 8, 8)
    drawn = [r.algorithm.draws(*identity, z) for identity in (("a", 0), ("b", 0), ("a", 1))]
    as_script("train", "--seed", "1")
    drawn.append(r.algorithm.draws("a", 0, z))
    assert all(t.shape == (3,) and noise.shape == (3, 4, 8, 8) for t, noise in drawn)
    assert len({noise.sum().item() for _, noise in drawn}) == 4


def test_no_steps_are_erm_and_load_no_model(run, host_run):
    trained = []
    for make in (lambda: host_run("ERM"), lambda: run(tta_steps=0)):
        r = make()
        losses = [row["loss"] for row in r.update(3)]
        trained.append((losses, r.algorithm.eval().predict(images(r))))
    assert trained[0][0] == trained[1][0] and torch.equal(trained[0][1], trained[1][1])
    assert r.algorithm._model is None


def test_a_network_without_normalisation_is_refused_for_it(run, monkeypatch):
    assert run(tta_parameters="normalisation").algorithm.adapted_weights()  # group normalisation
    monkeypatch.setattr("domainbed_domainfusion.algorithms.diffusion_tta.NORMALISATION", ())
    with pytest.raises(
        InputError, match="tta_parameters is normalisation, but the network has no such parameters: use"
    ):
        run(tta_parameters="normalisation")


def test_outside_a_training_run_it_answers_too(tiny_ldm):
    values = {**host.hparams_registry.default_hparams("DiffusionTTA", "Debug28"), "ldm": tiny_ldm, "image_size": 32}
    made = host.algorithms.DiffusionTTA((3, 28, 28), 2, 3, {**values, "tta_lr": 1.0}).eval()
    with torch.no_grad():
        assert made.predict(x := torch.rand(2, 3, 28, 28)).shape == (2, 2)
        assert not torch.equal(made.predict(x), made.network(x))


def test_its_defaults_are_those_of_the_authors_code_for_stable_diffusion():
    values = host.hparams_registry.default_hparams("DiffusionTTA", "PACS")
    paper = {"tta_steps": 5, "tta_draws": 12 * 16, "tta_optimizer": "sgd", "tta_lr": 5e-3, "image_size": 512,
             "tta_parameters": "all"}  # fmt: skip
    assert {name: values[name] for name in paper} == paper
