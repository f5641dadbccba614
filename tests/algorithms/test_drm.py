"""DRM against its losses and predictions written out in float64, domain by domain and image by image."""

import copy

import pytest
import torch
from torch import nn

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host

from . import two_layers as net
from .beside_erm import assert_it_is_erm


def drm(**hparams):
    """On the network of two layers, with a linear classifier for each of the two domains."""
    made = net.algorithm("DRM", **hparams)
    made.domain_classifiers = nn.ModuleList(nn.Linear(net.HIDDEN, net.CLASSES) for _ in range(2)).double()
    made.optimizer.add_param_group({"params": list(made.domain_classifiers.parameters())})
    return made


def flat(made):
    """θ: the network, then W and b of each domain's classifier."""
    return torch.cat([weight.detach().flatten() for part in (made.network, made.domain_classifiers)
                      for weight in part.parameters()])  # fmt: skip


def losses(theta, batch):
    """(shared, own): means over domains of the mean over images of −log p(y)."""
    size = sum(torch.Size(part).numel() for part in net.SIZES)
    head = net.CLASSES * net.HIDDEN + net.CLASSES
    shared, own = 0.0, 0.0
    for i, (x, y) in enumerate(batch):
        mine = theta[size + i * head : size + (i + 1) * head]
        shared = shared + net.loss(theta[:size], x, y) / len(batch)
        own = own + net.loss(torch.cat([theta[: size - head], mine]), x, y) / len(batch)
    return shared, own


@pytest.mark.parametrize("weight", [0.5, 0.2, 1.0])
def test_its_steps_are_adam_on_the_mean_of_shared_and_own_losses(weight):
    ours = drm(drm_weight=weight)
    theta, adam = flat(ours), net.Adam()
    for batch in net.minibatches(5):
        at = theta.clone().requires_grad_()
        shared, own = losses(at, batch)
        loss = (1 - weight) * shared + weight * own
        theta = adam.step(theta, torch.autograd.grad(loss, at)[0])
        expected = {"loss": loss.item(), "shared_loss": shared.item(), "domain_loss": own.item()}
        values = ours.update(batch)
        assert values.keys() == expected.keys()
        assert all(abs(values[name] - expected[name]) < 1e-12 for name in values)
    torch.testing.assert_close(flat(ours), theta, rtol=0, atol=1e-10)


def test_a_domains_classifier_sees_its_own_images_alone():
    """Other images for the second domain: the first one's gradient stays, the second one's and the shared move."""
    ((one, two), (other, _)) = net.minibatches(2)
    gradients = []
    for batch in ([one, two], [one, other]):
        ours = drm()
        ours.update(batch)
        gradients.append([head.weight.grad for head in (*ours.domain_classifiers, ours.classifier)])
    first, second, shared = (torch.equal(*pair) for pair in zip(*gradients))
    assert first and not second and not shared


def test_without_the_domains_classifiers_it_is_erm_bit_for_bit():
    assert_it_is_erm("DRM", drm_weight=0.0)


def rows_of(made, x):
    """Class probabilities [classifier][image] as lists; the shared classifier is the last one."""
    with torch.no_grad():
        features = made.featurizer(x)
        return [
            [[p.item() for p in row.exp() / row.exp().sum()] for row in head(features)]
            for head in (*made.domain_classifiers, made.classifier)
        ]


def entropy(row):
    return -sum(p * torch.tensor(p, dtype=torch.float64).log().item() for p in row)


def trained(**hparams):
    made = drm(lr=0.1, **hparams)
    for batch in net.minibatches(8):
        made.update(batch)
    return made.eval()


@pytest.fixture
def images():
    return torch.cat([net.joined(batch)[0] for batch in net.minibatches(12)[8:]])


def test_a_batch_is_answered_by_the_classifier_of_lowest_mean_entropy(images):
    ours, chosen = trained(), set()
    for part in images.split(2):
        rows = rows_of(ours, part)
        means = [sum(map(entropy, head)) / len(head) for head in rows]
        best = means.index(min(means))
        expected = torch.tensor(rows[best], dtype=torch.float64)
        torch.testing.assert_close(ours.predict(part).softmax(-1).detach(), expected)
        chosen.add(best)
    assert len(chosen) > 1  # so an image's answer depends on its batch


def test_the_shared_classifier_may_answer_too(images):
    ours = trained()
    ours.classifier.weight.data *= 50
    assert torch.equal(ours.predict(images), ours.network(images))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_weighted_is_the_domains_mixture_by_entropy(images, gamma):
    ours = trained(drm_predict="weighted", drm_gamma=gamma)
    rows = rows_of(ours, images)[:-1]
    found = ours.predict(images).exp().tolist()
    for i, answer in enumerate(found):
        weights = [entropy(head[i]) ** -gamma for head in rows]
        expected = [sum(w * head[i][c] for w, head in zip(weights, rows)) / sum(weights) for c in range(net.CLASSES)]
        assert answer == pytest.approx(expected, abs=1e-9)


def test_lowest_is_each_images_domain_of_lowest_entropy(images):
    ours, chosen = trained(drm_predict="lowest"), set()
    rows = rows_of(ours, images)[:-1]
    for i, answer in enumerate(ours.predict(images).softmax(-1).tolist()):
        best = min(range(2), key=lambda head: entropy(rows[head][i]))
        assert answer == pytest.approx(rows[best][i], abs=1e-6)
        chosen.add(best)
    assert chosen == {0, 1}


@pytest.mark.parametrize("kind", ["weighted", "lowest"])
def test_these_two_depend_on_no_other_image(images, kind):
    ours = trained(drm_predict=kind)
    one_by_one = torch.cat([ours.predict(image[None]) for image in images])
    torch.testing.assert_close(ours.predict(images), one_by_one, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.predict(images.flip(0)).flip(0), one_by_one, rtol=0, atol=1e-12)


def test_a_certain_classifier_gives_finite_numbers(images):
    ours = trained(drm_predict="weighted", drm_gamma=5.0)
    ours.domain_classifiers[1].weight.data *= 1e6
    found = ours.predict(images)
    assert torch.isfinite(found).all()
    assert torch.equal(found.argmax(1), ours.domain_classifiers[1](ours.featurizer(images)).argmax(1))


@pytest.mark.parametrize("kind", ["batch", "weighted", "lowest"])
def test_predictions_change_nothing(images, kind):
    ours = trained(drm_predict=kind)
    before = copy.deepcopy(ours.state_dict())
    ours.predict(images)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_its_classifiers_begin_apart_and_move_no_other_random_number():
    values = host.hparams_registry.default_hparams("DRM", "Debug28")
    torch.manual_seed(3)
    host.algorithms.ERM((3, 28, 28), 2, 3, values)
    after_erm = torch.rand(1)
    torch.manual_seed(3)
    ours = host.algorithms.DRM((3, 28, 28), 2, 3, values)
    assert torch.equal(torch.rand(1), after_erm)
    weights = [head.weight for head in (*ours.domain_classifiers, ours.classifier)]
    assert len(weights) == 4 and not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_a_weight_above_one_is_refused():
    with pytest.raises(InputError, match="The hparam drm_weight is 1.5, but must be a number from 0 to 1: share of "):
        net.algorithm("DRM", drm_weight=1.5)


def test_the_hosts_optimizer_trains_all_classifiers_alike():
    values = {**host.hparams_registry.default_hparams("DRM", "Debug28"), "lr": 0.02, "weight_decay": 0.3}
    ours = host.algorithms.DRM((3, 28, 28), 2, 3, values)
    groups = ours.optimizer.param_groups
    assert {id(weight) for group in groups for weight in group["params"]} == {id(w) for w in ours.parameters()}
    assert all((group["lr"], group["weight_decay"]) == (0.02, 0.3) for group in groups)
