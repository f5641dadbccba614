"""AdvStyle against its layer written out in float64, by image and channel, and against its training by hand."""

import copy

import pytest
import torch
from torch import nn

from domainbed_domainfusion.algorithms.advstyle import StyleLayer
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.seeding import seed_of

from . import two_layers as net
from .beside_erm import assert_it_is_erm

CHANNELS, WEIGHT = 5, 3.0
HPARAMS = {"advstyle_probability": 2 / 3, "advstyle_weight": WEIGHT, "advstyle_stages": "1"}


def draws(passes, images, channels=CHANNELS, stage=1):
    """The kind of the pass, and n₁ and n₂ (images, channels)."""
    generator = torch.Generator().manual_seed(seed_of(0, "AdvStyle", stage, passes))
    u = torch.rand(1, generator=generator).item()
    kind = "learned" if u < 1 / 3 else "batch" if u < 2 / 3 else "identity"
    n1, n2 = (torch.randn(images, channels, 1, 1, generator=generator).double() for _ in range(2))
    return kind, n1[..., 0, 0], n2[..., 0, 0]


def statistics(x):
    """Lists [image][channel] of μ and σ: σ² has the divisor H·W − 1."""
    means = [[channel.sum() / channel.numel() for channel in image] for image in x]
    deviations = [
        [(((c - m) ** 2).sum() / (c.numel() - 1) + 1e-6) ** 0.5 for c, m in zip(image, row)]
        for image, row in zip(x, means)
    ]
    return means, deviations


def spread(rows):
    """The standard deviation over images of each channel."""
    found = []
    for column in zip(*rows):
        middle = sum(column) / len(column)
        found.append((sum((value - middle) ** 2 for value in column) / (len(column) - 1) + 1e-6) ** 0.5)
    return found


def styled(x, n1, n2, s_mean=None, s_deviation=None):
    means, deviations = statistics(x)
    s_mean = spread(means) if s_mean is None else s_mean
    s_deviation = spread(deviations) if s_deviation is None else s_deviation
    return torch.stack([
        torch.stack([
            (x[i, c] - means[i][c]) / deviations[i][c] * (deviations[i][c] + n2[i, c] * s_deviation[c])
            + means[i][c] + n1[i, c] * s_mean[c]
            for c in range(x.shape[1])
        ])
        for i in range(len(x))
    ])  # fmt: skip


@pytest.fixture
def layer():
    return StyleLayer(CHANNELS, 1, HPARAMS).double()


@pytest.fixture
def maps():
    return torch.randn(4, CHANNELS, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_pass_is_one_of_three(layer, maps):
    s, kinds = None, []
    for passes in range(12):
        kind, n1, n2 = draws(passes, len(maps))
        kinds.append(kind)
        x = maps * (1 + passes)
        if kind == "learned" and s is None:
            s = [spread(values) for values in statistics(x)]
        expected = x if kind == "identity" else styled(x, n1, n2, *(s if kind == "learned" else ()))
        torch.testing.assert_close(layer(x).detach(), expected, rtol=0, atol=1e-12)
    assert set(kinds) == {"identity", "batch", "learned"} and kinds.count("learned") > 1


def passes_of(kind):
    return [passes for passes in range(30) if draws(passes, 1)[0] == kind]


def test_gradients_reach_the_maps_through_their_statistics(layer, maps):
    for kind in ("batch", "learned"):
        layer.begun, first = True, passes_of(kind)[0]

        def at(x, first=first):
            layer.passes = first
            return layer(x)

        torch.autograd.gradcheck(at, maps.clone().requires_grad_())


def test_the_learned_spreads_have_reversed_gradients(layer, maps):
    layer.passes, layer.begun = passes_of("learned")[0], True
    _, n1, n2 = draws(layer.passes, len(maps))
    target = torch.randn_like(maps)
    (layer(maps) * target).sum().backward()
    s = [torch.ones(CHANNELS, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    plain = torch.autograd.grad((styled(maps, n1, n2, *s) * target).sum(), s)
    for parameter, gradient in zip((layer.s_mean, layer.s_deviation), plain):
        torch.testing.assert_close(parameter.grad[0, :, 0, 0], -WEIGHT * gradient, rtol=0, atol=1e-10)


class Small(nn.Module):
    """tanh of a 1 × 1 convolution, which is its stage 1, and the mean over pixels: (B, 3, 2, 2) → (B, CHANNELS)."""

    n_outputs = CHANNELS

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), nn.Tanh())

    def forward(self, x):
        return self.layer1(x).mean((2, 3))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(host.networks, "Featurizer", lambda shape, hparams: Small())

    def make(name="AdvStyle", **hparams):
        values = {**host.hparams_registry.default_hparams(name, "Debug28"), **HPARAMS, "lr": 0.01, **hparams}
        torch.manual_seed(0)
        return host.algorithms.get_algorithm_class(name)(net.SHAPE, net.CLASSES, 2, {**values, "weight_decay": 0.02})

    return make


def loss_of(weights, s, x, y, kind, n1, n2):
    w1, b1, w2, b2 = weights
    maps = torch.tanh(torch.einsum("bchw,kc->bkhw", x, w1[..., 0, 0]) + b1[:, None, None])
    if kind != "identity":
        maps = styled(maps, n1, n2, *(s if kind == "learned" else (None, None)))
    scores = (maps.mean((2, 3)) @ w2.T + b2).exp()
    return -torch.stack([(row[label] / row.sum()).log() for row, label in zip(scores, y)]).mean(), maps


def flattened(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_its_steps_descend_by_the_network_and_ascend_by_the_spreads(small):
    """An Adam for the network, and another for the spreads, which makes no step in the passes that leave them out."""
    ours = small().double()
    weights = [weight.detach().clone() for weight in ours.network.parameters()]
    s, adam, adam_of_s, kinds = None, net.Adam(), net.Adam(), []
    for step, batch in enumerate(net.minibatches(9)):
        x, y = net.joined(batch)
        kind, n1, n2 = draws(step, len(x))
        kinds.append(kind)
        if kind == "learned" and s is None:
            _, plain = loss_of(weights, None, x, y, "identity", n1, n2)
            s = [torch.stack(spread(values)) for values in statistics(plain)]
        at = [weight.clone().requires_grad_() for weight in weights]
        at_s = [value.clone().requires_grad_() for value in s or ()]
        loss, _ = loss_of(at, at_s, x, y, kind, n1, n2)
        gradients = torch.autograd.grad(loss, at + at_s if kind == "learned" else at)
        moved = adam.step(flattened(weights), flattened(gradients[:4]))
        weights = [part.view_as(w) for part, w in zip(moved.split([w.numel() for w in weights]), weights)]
        if kind == "learned":
            s = list(adam_of_s.step(flattened(s), -WEIGHT * flattened(gradients[4:])).split(CHANNELS))
        assert ours.update(batch)["loss"] == pytest.approx(loss.item(), abs=1e-10)
    for found, expected in zip(ours.network.parameters(), weights):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    (layer,) = ours.style_layers
    for found, expected in zip((layer.s_mean, layer.s_deviation), s):
        torch.testing.assert_close(found[0, :, 0, 0], expected, rtol=0, atol=1e-9)
    assert kinds.count("learned") > 1 and set(kinds) == {"identity", "batch", "learned"}


def test_without_moving_styles_it_is_erm_bit_for_bit():
    assert_it_is_erm("AdvStyle", advstyle_probability=0.0)


def test_predictions_are_the_plain_networks_and_change_nothing(small):
    ours, (batch,) = small(advstyle_probability=1.0).double(), net.minibatches(1)
    ours.update(batch)
    ours.eval()
    before, x = copy.deepcopy(ours.state_dict()), batch[0][0]
    plain = copy.deepcopy(ours.network)
    plain[0].layer1._forward_hooks.clear()
    passes = ours.style_layers[0].passes
    assert torch.equal(ours.predict(x), plain(x))
    assert torch.equal(ours.predict(x.flip(0)).flip(0), ours.predict(x))
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())
    assert ours.style_layers[0].passes == passes


def test_the_weights_of_the_network_keep_their_names(small):
    assert list(small().network.state_dict()) == list(small("ERM").network.state_dict())


def test_a_copy_has_layers_of_its_own(small):
    ours = small(advstyle_probability=1.0).double()
    twin, batches = copy.deepcopy(ours), net.minibatches(4)
    losses = [[each.update(batch)["loss"] for batch in batches] for each in (ours, twin)]
    assert losses[0] == losses[1] and ours.style_layers[0].passes == twin.style_layers[0].passes == 4
    assert ours.style_layers[0].s_mean is not twin.style_layers[0].s_mean


def test_a_single_image_has_no_spread(layer, maps):
    for passes in range(10):
        layer.passes = passes
        torch.testing.assert_close(layer(maps[:1]).detach(), maps[:1], rtol=0, atol=1e-12)


def test_stages_draw_apart_and_the_default_has_three():
    values = host.hparams_registry.default_hparams("AdvStyle", "Debug28")
    ours = host.algorithms.AdvStyle((3, 28, 28), 2, 3, values)
    assert [layer.identity for layer in ours.style_layers] == [(0, "AdvStyle", stage) for stage in (1, 2, 3)]
    assert [layer.s_mean.shape[1] for layer in ours.style_layers] == [64, 128, 128]
    trained = {id(weight) for group in ours.optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in ours.parameters()}


@pytest.mark.parametrize("hparams, sentence", [
    ({"advstyle_stages": "01234"}, "AdvStyle needs the feature map after stage 0 of the backbone, but the stages with "
                                   "a feature map in this MNIST_CNN are 1, 2, 3, 4: choose other stages, or a ResNet"),
    ({"advstyle_stages": "21"}, "The hparam advstyle_stages is '21', but must be a text of rising digits from 0 to 4"),
    ({"advstyle_probability": 1.1}, "The hparam advstyle_probability is 1.1, but must be a number from 0 to 1"),
])  # fmt: skip
def test_what_it_cannot_do_is_said_before_training(hparams, sentence):
    values = {**host.hparams_registry.default_hparams("AdvStyle", "Debug28"), **hparams}
    with pytest.raises(InputError, match=sentence):
        host.algorithms.AdvStyle((3, 28, 28), 2, 3, values)
