"""ITTA against its training step and its adaptation at test written out in float64, on a network of two stages."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from domainbed_domainfusion.algorithms.after_stage import AfterStage, ElementWise
from domainbed_domainfusion.algorithms.itta import standardised as ours_standardised
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.seeding import seed_of

from . import two_layers as net

CHANNELS = (4, 5)


class Small(nn.Module):
    """Two stages, tanh of a 1 × 1 convolution each, and the mean over pixels: (B, 3, 2, 2) → (B, 5)."""

    n_outputs = CHANNELS[1]

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, CHANNELS[0], 1), nn.Tanh())
        self.layer2 = nn.Sequential(nn.Conv2d(*CHANNELS, 1), nn.Tanh())

    def forward(self, x):
        return self.layer2(self.layer1(x)).mean((2, 3))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(host.networks, "Featurizer", lambda shape, hparams: Small())

    def make(name="ITTA", **hparams):
        values = host.hparams_registry.default_hparams(name, "Debug28")
        torch.manual_seed(0)
        values = {**values, "itta_stages": "12", "lr": 0.01, "weight_decay": 0.02, **hparams}
        return host.algorithms.get_algorithm_class(name)(net.SHAPE, net.CLASSES, 2, values).double()

    return make


def drawn(images, *identity):
    """The stage, and each image's share of its own style and its partner."""
    random = np.random.default_rng(seed_of(0, "ITTA", *identity))
    return random.integers(2), random.beta(0.1, 0.1, images), random.permutation(images)


def restyled(x, share, partner):
    """Channel by channel: mean and deviation (divisor H·W − 1) are those of two images, mixed."""
    rows = []
    for i, j in enumerate(partner):
        row = []
        for mine, other in zip(x[i], x[j]):
            (mean, deviation), (other_mean, other_deviation) = (
                (c.mean().detach(), ((((c - c.mean()) ** 2).sum() / (c.numel() - 1) + 1e-6) ** 0.5).detach())
                for c in (mine, other)
            )
            wanted = share[i] * deviation + (1 - share[i]) * other_deviation
            row.append((mine - mean) / deviation * wanted + share[i] * mean + (1 - share[i]) * other_mean)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def chain(x, weights, biases):
    for w, b in zip(weights[:-1], biases[:-1]):
        x = torch.relu(w * x + b)
    return weights[-1] * x + biases[-1]


def features(weights, x, blocks=None, styles=None):
    """blocks: for each stage weights and biases. styles: of `drawn`."""
    for i in range(2):
        w, b = weights[2 * i : 2 * i + 2]
        x = torch.tanh(torch.einsum("bchw,kc->bkhw", x, w[..., 0, 0]) + b[:, None, None])
        if styles is not None and styles[0] == i:
            x = restyled(x, *styles[1:])
        if blocks is not None:
            x = chain(torch.relu(x), *blocks[i]) - torch.relu(-x)
    return x.mean((2, 3))


def parts_of_loss(weights, f_w, x, y, *identity):
    """The two cross-entropies, and the consistency loss."""
    z, z2 = features(weights, x), features(weights, x, styles=drawn(len(x), *identity))
    classes = 0.0
    for each in (z, z2):
        scores = (each @ weights[4].T + weights[5]).exp()
        classes = classes - torch.stack([(row[label] / row.sum()).log() for row, label in zip(scores, y)]).mean()
    return classes, (chain(z2 - z, *f_w) ** 2).sum() / z.numel()


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def shaped(vector, like):
    return [part.view_as(t) for part, t in zip(vector.split([t.numel() for t in like]), like)]


def standardised(gradients):
    vector = torch.cat([gradient.flatten() for gradient in gradients])
    return (vector - vector.mean().item()) / vector.std().item()


def test_its_steps_are_adam_on_its_losses_and_then_f_ws_on_the_gradients_distance(small):
    ours = small()
    weights = [weight.detach().clone() for weight in ours.network.parameters()]
    f_w = [[torch.full((5,), value).double() for _ in range(10)] for value in (1.0, 0.0)]
    adam, adam_of_f = net.Adam(), net.Adam(lr=0.001, weight_decay=0.0)
    for step, batch in enumerate(net.minibatches(4)):
        x, y = net.joined(batch)
        at = [weight.clone().requires_grad_() for weight in weights]
        classes, consistency = parts_of_loss(at, f_w, x, y, "training", step, 0)
        gradients = torch.autograd.grad(classes + consistency, at)
        weights = shaped(adam.step(flat(weights), flat(gradients)), weights)

        at = [weight.clone().requires_grad_() for weight in weights]
        own = [[value.clone().requires_grad_() for value in part] for part in f_w]
        parts = parts_of_loss(at, own, x, y, "training", step, 1)
        of_classes, of_consistency = (torch.autograd.grad(part, at[:4], create_graph=True) for part in parts)
        distance = (standardised(of_consistency) - standardised(of_classes).detach()).square().mean()
        of_f = torch.autograd.grad(0.1 * distance, own[0] + own[1])
        joined = shaped(adam_of_f.step(flat(f_w[0] + f_w[1]), flat(of_f)), f_w[0] + f_w[1])
        f_w = [joined[:10], joined[10:]]
        assert ours.update(batch) == pytest.approx({
            "loss": (classes + consistency).item(), "consistency": consistency.item(),
            "gradient_distance": distance.item(),
        }, abs=1e-9)  # fmt: skip
    torch.testing.assert_close(flat(ours.network.parameters()), flat(weights), rtol=0, atol=1e-8)
    torch.testing.assert_close(flat(ours.f_w.parameters()), flat(f_w[0] + f_w[1]), rtol=0, atol=1e-8)
    assert {drawn(8, "training", step, k)[0] for step in range(4) for k in range(2)} == {0, 1}
    assert not torch.equal(f_w[0][0], torch.ones(5).double())


class Adapted:
    """The blocks of an evaluation, by hand."""

    def __init__(self, ours, weight, lr=0.001):
        self.weights = [w.detach().clone() for w in ours.network.parameters()]
        self.f_w = [[value.detach() for value in part] for part in (ours.f_w.weights, ours.f_w.biases)]
        self.weight, self.steps, self.adam = weight, 0, net.Adam(lr, weight_decay=0.0)
        shapes = [(channels, 2, 2) for channels in CHANNELS]
        self.values = [torch.full(s, v).double() for s in shapes for v in (1.0, 0.0) for _ in range(5)]

    def blocks(self, values):
        return [(values[i : i + 5], values[i + 5 : i + 10]) for i in (0, 10)]

    def predict(self, x, steps=1):
        for _ in range(steps):
            at = [value.clone().requires_grad_() for value in self.values]
            styles = drawn(len(x), "test", self.steps)
            z, z2 = (features(self.weights, x, self.blocks(at), style) for style in (None, styles))
            loss = self.weight * (chain(z2 - z, *self.f_w) ** 2).mean()
            gradients = torch.autograd.grad(loss, at, allow_unused=True)
            gradients = [torch.zeros_like(v) if g is None else g for v, g in zip(at, gradients)]
            self.values = shaped(self.adam.step(flat(self.values), flat(gradients)), self.values)
            self.steps += 1
        return features(self.weights, x, self.blocks(self.values)) @ self.weights[4].T + self.weights[5]


def trained(make, **hparams):
    ours = make(**hparams)
    for batch in net.minibatches(3):
        ours.update(batch)
    return ours.eval()


@torch.no_grad()
def predicted(ours, x):
    return ours.predict(x)


def test_images():
    return [net.joined(batch)[0] for batch in net.minibatches(9)[3:]]


test_images.__test__ = False


@pytest.mark.parametrize("weight, steps", [(1.0, 1), (1e-6, 1), (1.0, 3)])
def test_blocks_step_on_each_batch_and_then_answer(small, weight, steps):
    ours = trained(small, itta_test_weight=weight, itta_test_steps=steps)
    by_hand = Adapted(ours, weight)
    plain = copy.deepcopy(ours)
    plain.hparams["itta_test_steps"] = 0
    for x in test_images():
        found = predicted(ours, x)
        torch.testing.assert_close(found, by_hand.predict(x, steps).detach(), rtol=0, atol=1e-9)
    assert not torch.allclose(found, predicted(plain, x), atol=1e-5)


@pytest.mark.parametrize("call", ["train", "eval"])
def test_an_evaluation_does_not_depend_on_the_one_before(small, call):
    ours = trained(small, itta_test_weight=1.0)
    first, second = test_images()[:2]
    alone = predicted(ours, second)
    ours.eval()
    predicted(ours, first)
    assert not torch.equal(predicted(ours, second), alone)
    getattr(ours, call)()
    assert torch.equal(predicted(ours.eval(), second), alone)


def test_with_batch_an_answer_depends_on_its_batch_alone(small):
    ours = trained(small, itta_test_weight=1.0, itta_reset="batch")
    expected = [Adapted(ours, 1.0).predict(x).detach() for x in test_images()]
    for x, answer in zip(test_images(), expected):
        torch.testing.assert_close(predicted(ours, x), answer, rtol=0, atol=1e-9)


def test_a_single_image_is_answered_by_the_plain_network(small):
    """It has no other style to be mixed with, so nothing is inconsistent."""
    ours, x = trained(small, itta_test_weight=1.0), test_images()[0][:1]
    torch.testing.assert_close(predicted(ours, x), ours.train().network(x).detach(), rtol=0, atol=1e-12)


def test_predictions_change_no_weight_statistic_gradient_or_random_number(host_run):
    r = host_run("ITTA", backbone="resnet18", pretrained=False, freeze_bn=False, itta_stages="12", itta_test_weight=1.0)
    r.update(1)
    ours = r.algorithm.eval()
    assert ours.featurizer.network.bn1.num_batches_tracked == 2  # both views of the network's step, and not f_w's
    state, x = copy.deepcopy(ours.state_dict()), torch.rand(4, 3, 32, 32)
    gradients = [None if w.grad is None else w.grad.clone() for w in ours.parameters()]
    random = torch.get_rng_state()
    predicted(ours, x)
    assert ours.stages[0].block is not None and torch.equal(torch.get_rng_state(), random)
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    for weight, before in zip(ours.parameters(), gradients):
        assert (weight.grad is None) if before is None else torch.equal(weight.grad, before)


def test_in_training_mode_and_without_steps_it_is_the_plain_network(small):
    x, ours = test_images()[0], trained(small, itta_test_weight=1.0)
    plain = copy.deepcopy(ours.network)
    for layer in (plain[0].layer1, plain[0].layer2):
        layer._forward_hooks.clear()
    predicted(ours, x)
    assert torch.equal(predicted(ours.train(), x), plain(x).detach())
    assert torch.equal(predicted(trained(small, itta_test_steps=0), x), plain(x).detach())


def test_training_after_a_prediction_is_training_without_it(small):
    one, other = small(itta_test_weight=1.0), small(itta_test_weight=1.0)
    batches = net.minibatches(3)
    one.update(batches[0])
    other.update(batches[0])
    predicted(one.eval(), batches[0][0][0])  # and no call of train()
    assert one.update(batches[1]) == other.update(batches[1])


def test_copies_in_the_middle_of_an_evaluation_go_on_alike(small):
    ours = trained(small, itta_test_weight=1.0)
    first, second = test_images()[:2]
    predicted(ours, first)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    answer = predicted(ours, second)
    for each in copies:
        assert torch.equal(predicted(each, second), answer)
        assert each.stages[0].block is not ours.stages[0].block


def test_a_new_block_changes_nothing_and_is_the_papers_for_maps_without_negative_values():
    stage, x = AfterStage(), torch.randn(2, 3, 4, 4)
    stage.mapped = True
    assert torch.equal(stage.after(None, None, x), x)
    block = stage.block = ElementWise(5, (3, 4, 4))
    for value in block.parameters():
        value.data += 0.3 * torch.randn_like(value)
    positive = x.abs()
    torch.testing.assert_close(stage.after(None, None, positive), chain(positive, block.weights, block.biases))


def test_gradients_that_are_all_alike_stay_finite():
    assert not ours_standardised([torch.zeros(3), torch.zeros(2, 2)]).any()


def test_the_weights_of_the_network_keep_their_names(small):
    assert list(small().network.state_dict()) == list(small("ERM").network.state_dict())


@pytest.mark.parametrize("hparams, sentence", [
    ({"itta_stages": "123"}, "ITTA needs the feature map after stage 3 of the backbone, but the stages with a feature"),
    ({"itta_reset": "never"}, "The hparam itta_reset is 'never', but must be one of evaluation, batch: when the"),
])  # fmt: skip
def test_what_it_cannot_do_is_said_before_training(small, hparams, sentence):
    with pytest.raises(InputError, match=sentence):
        small(**hparams)
