"""The stages of backbones: what they return, and the sentences where there are none."""

import pytest
import torch
from torch import nn

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting.backbone_stages import stages_of

HPARAMS = {**host.hparams_registry.default_hparams("ERM", "PACS"), "pretrained": False}
NAMED = {
    "resnet18": [0, 1, 2, 3, 4],
    "resnet10t": [0, 1, 2, 3, 4],
    "efficientnet_lite0": [1, 2, 3, 4],
    "convnext_atto": [1, 2, 3, 4],
    "regnetx_002": [1, 2, 3, 4],
}


def featurizer(name: str, size: int):
    return host.networks.Featurizer((3, size, size), {**HPARAMS, "backbone": name})


def recorded(network, stage, x) -> torch.Tensor:
    kept = []
    handle = stage.module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    network(x)
    handle.remove()
    (output,) = kept
    return output


@pytest.mark.parametrize("name", NAMED)
def test_stages_of_named_backbones_have_strides_4_to_32(name):
    network, x = featurizer(name, 64), torch.randn(2, 3, 64, 64)
    found = stages_of(network, (3, 64, 64), NAMED[name], "A")
    assert [stage.number for stage in found] == NAMED[name]
    for stage in found:
        side = 64 // 2 ** (max(stage.number, 1) + 1)
        assert recorded(network, stage, x).shape == (2, stage.channels, side, side) and stage.pixels == side**2
    assert network.training


@pytest.mark.parametrize("size, numbers", [(28, [1, 2, 3, 4]), (32, [1, 2, 3])])
def test_the_hosts_own_small_networks(size, numbers):
    network = host.networks.Featurizer((3, size, size), {**HPARAMS, "backbone": "host", "pretrained": True})
    found = stages_of(network, (3, size, size), numbers, "A")
    assert [stage.channels for stage in found] == ([64, 128, 128, 128] if size == 28 else [32, 64, 128])


def test_the_weights_and_statistics_stay():
    network = featurizer("resnet18", 64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages_of(network, (3, 64, 64), [1], "A")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    "network, size, numbers, sentence",
    [
        (lambda: featurizer("vit_tiny_patch16_224", 224), 224, [1], "A needs the feature map after stage 1 of the "
         "backbone, but the stages with a feature map in this VisionTransformer are none: choose other stages, or"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 2, [2], "in this Sequential are none"),
        (lambda: featurizer("efficientnet_lite0", 64), 64, [0, 1], "after stage 0 .* in this EfficientNet are 1, 2, 3"),
        (lambda: featurizer("resnet18", 32), 32, [3, 4], "A needs feature maps of two pixels or more, but after stage "
         "4 of this ResNet one pixel is left: leave that stage out, or train on larger images."),
    ],
    ids=["vit", "no stages", "no stem", "one pixel"],
)  # fmt: skip
def test_a_backbone_without_the_stage_is_refused(network, size, numbers, sentence):
    with pytest.raises(InputError, match=sentence):
        stages_of(network(), (3, size, size), numbers, "A")
