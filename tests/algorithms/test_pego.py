"""PEGO against merged weights and sums over entries in float64, on a Vision Transformer of two blocks."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from domainbed_domainfusion.algorithms.pego import qkv_layers
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host

SHAPE, WIDTH, CLASSES = (3, 28, 28), 64, 3


def made(name="PEGO", **hparams):
    values = {**host.hparams_registry.default_hparams("PEGO", "Debug28"), "lr": 0.01, "weight_decay": 0.02, **hparams}
    torch.manual_seed(0)
    return host.algorithms.get_algorithm_class(name)(SHAPE, CLASSES, 2, values).double()


def minibatches(steps):
    generator = torch.Generator().manual_seed(3)
    return [
        [
            (torch.randn(3, *SHAPE, generator=generator).double(), torch.randint(CLASSES, (3,), generator=generator))
            for _ in range(2)
        ]
        for _ in range(steps)
    ]


def trained(**hparams):
    ours = made(**hparams)
    for batch in minibatches(3):
        ours.update(batch)
    return ours


def frozen_twin(ours):
    """The plain network, without the hooks."""
    network = copy.deepcopy(ours.network)
    for layer in qkv_layers(network[0]):
        layer._forward_hooks.clear()
    return network


def pairs_of(group):
    """[query or value][pair] → (A, B)."""
    return [[(group.down[w, i], group.up[w, i]) for i in range(group.down.shape[1])] for w in range(2)]


def merged(network, groups):
    """{parameter's name: value} with every pair added to its rows of the joint layer."""
    values = dict(network.named_parameters())
    for i, group in enumerate(groups):
        name = f"0.network.blocks.{i}.attn.qkv.weight"
        added = [sum(B @ A for A, B in pairs) for pairs in pairs_of(group)]
        rows = torch.cat([added[0], torch.zeros(WIDTH, WIDTH).double(), added[1]])
        values[name] = values[name] + rows
    return values


def products(network, groups):
    total = 0.0
    for layer, group in zip(qkv_layers(network[0]), groups):
        for rows, pairs in zip((layer.weight[:WIDTH], layer.weight[2 * WIDTH :]), pairs_of(group)):
            for A, B in pairs:
                total = total + (rows @ (B @ A).T).abs().sum()
            for (A, B), (C, D) in itertools.combinations(pairs, 2):
                total = total + ((B @ A) @ (D @ C).T).abs().sum()
    return total


@pytest.mark.parametrize("pairs, rank", [(4, 4), (2, 3), (1, 2)])
def test_its_steps_are_adam_on_merged_weights_and_products(pairs, rank):
    ours = made(pego_pairs=pairs, pego_rank=rank, pego_weight=0.01)
    network, groups = frozen_twin(ours), copy.deepcopy(ours.groups)
    weights = [*network[1].parameters(), *groups.parameters()]
    adam = torch.optim.Adam(weights, lr=0.01, weight_decay=0.02)
    for batch in minibatches(4):
        x, y = (torch.cat(parts) for parts in zip(*batch))
        scores = torch.func.functional_call(network, merged(network, groups), x).exp()
        found = -(scores[torch.arange(len(x)), y] / scores.sum(1)).log().mean()
        orthogonality = products(network, groups)
        loss = found + 0.01 * orthogonality
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
            weight.grad = gradient
        adam.step()
        assert ours.update(batch) == pytest.approx(
            {"loss": loss.item(), "orthogonality": orthogonality.item()}, abs=1e-9
        )
    assert orthogonality > 0
    own = parameters_to_vector([*ours.classifier.parameters(), *ours.groups.parameters()])
    torch.testing.assert_close(own, parameters_to_vector(weights), rtol=0, atol=1e-8)


def test_the_backbone_stays_and_predictions_are_those_of_merged_weights():
    before, ours = made(), trained()
    for one, other in zip(before.featurizer.parameters(), ours.featurizer.parameters(), strict=True):
        assert torch.equal(one, other) and not other.requires_grad
    x, network = minibatches(1)[0][0][0], frozen_twin(ours).eval()
    with torch.no_grad():
        expected = torch.func.functional_call(network, merged(network, ours.groups), x)
        found = ours.eval().predict(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert not torch.allclose(found, network(x), atol=1e-4)
        one_by_one = torch.cat([ours.predict(image[None]) for image in x])
    torch.testing.assert_close(found, one_by_one, rtol=0, atol=1e-10)


def test_new_pairs_change_nothing_and_begin_apart():
    ours, x = made(), minibatches(1)[0][0][0]
    assert torch.equal(ours.predict(x), frozen_twin(ours)(x))
    downs = torch.cat([group.down.detach().flatten(0, 1) for group in ours.groups])
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(downs, 2))
    assert 0.95 / 8 < downs.abs().max() <= 1 / 8 and not any(group.up.any() for group in ours.groups)
    kaiming = nn.Linear(WIDTH, 4096, bias=False).weight
    assert downs.std().item() == pytest.approx(kaiming.std().item(), rel=0.03)


@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_without_pairs_it_is_erm_on_a_frozen_backbone_bit_for_bit(weight):
    ours, erm = made(pego_pairs=0, pego_weight=weight), made("ERM")
    erm.featurizer.requires_grad_(False)
    for batch in minibatches(3):
        assert ours.update(batch)["loss"] == erm.update(batch)["loss"]
    for one, other in zip(ours.network.parameters(), erm.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_at_weight_zero_the_loss_is_the_cross_entropy_alone():
    ours, batch = trained(pego_weight=0.0), minibatches(1)[0]
    x, y = (torch.cat(parts) for parts in zip(*batch))
    assert ours.update(batch)["loss"] == nn.functional.cross_entropy(trained(pego_weight=0.0).predict(x), y).item()


def test_it_moves_no_random_number_and_keeps_the_names():
    erm = made("ERM")
    after = torch.rand(1)
    ours = made()
    assert torch.equal(torch.rand(1), after)
    assert list(ours.network.state_dict()) == list(erm.network.state_dict())
    in_optimizer = {id(weight) for group in ours.optimizer.param_groups for weight in group["params"]}
    assert in_optimizer == {id(weight) for weight in ours.parameters()}


def test_copies_have_pairs_of_their_own():
    ours = trained()
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    batch = minibatches(5)[4]
    values = ours.update(batch)
    for each in copies:
        assert each.update(batch) == values
        assert each.groups[0].up is not ours.groups[0].up


def test_a_saved_model_is_the_same_model():
    ours, other = trained().eval(), made().eval()
    other.load_state_dict(ours.state_dict())
    x = minibatches(1)[0][0][0]
    assert torch.equal(other.predict(x), ours.predict(x))


@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_224"])
def test_timms_vision_transformers_do(backbone):
    values = host.hparams_registry.default_hparams("PEGO", "PACS")
    assert values["backbone"] == "vit_base_patch16_clip_224.openai"
    values.update(backbone=backbone, pretrained=False, batch_size=1)
    ours = host.algorithms.PEGO((3, 224, 224), 7, 3, values)
    before = ours.groups[0].up.detach().clone()
    batch = [(torch.randn(1, 3, 224, 224), torch.tensor([1]))]
    ours.update(batch)
    assert not torch.equal(ours.groups[0].up, before) and ours.predict(batch[0][0]).shape == (1, 7)
    assert len(ours.groups) == len(ours.featurizer.network.blocks)


@pytest.mark.parametrize("backbone, kind", [("mnist_cnn", "MNIST_CNN"), ("resnet18", "ResNet"), ("mixer_s32_224", "")])
def test_other_backbones_are_refused_before_training(backbone, kind):
    values = host.hparams_registry.default_hparams("PEGO", "PACS")
    values.update(backbone=backbone, pretrained=backbone == "mnist_cnn")
    with pytest.raises(InputError, match=f"PEGO needs a Vision Transformer of timm .*, but the backbone is a .*{kind}"):
        host.algorithms.PEGO((3, 224, 224), 7, 3, values)
