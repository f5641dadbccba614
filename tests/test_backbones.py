"""Featurizers by name, for every algorithm of the host."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from domainbed_domainfusion import host
from domainbed_domainfusion.errors import InputError


def hparams(**values):
    return {**host.hparams_registry.default_hparams("ERM", "PACS"), **values}


@pytest.mark.parametrize("name, n_outputs", [
    ("resnet18", 512), ("resnet50", 2048), ("mnist_cnn", 128), ("resnet10t", 512)])
def test_untrained_backbones_give_features(name, n_outputs):
    featurizer = host.networks.Featurizer((3, 64, 64), hparams(backbone=name, pretrained=False))
    assert featurizer.n_outputs == n_outputs
    assert featurizer(torch.rand(2, 3, 64, 64)).shape == (2, n_outputs)


def test_regnet_is_the_one_with_swag_weights():
    featurizer = host.networks.Featurizer((3, 224, 224), hparams(backbone="regnety_16gf_swag", pretrained=False))
    count = sum(p.numel() for p in featurizer.parameters())
    weights = torchvision.models.RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_LINEAR_V1
    head = 1000 * (featurizer.n_outputs + 1)
    assert (count + head, featurizer.n_outputs) == (weights.meta["num_params"], 3024)


def test_the_hosts_own_choice_is_the_default():
    from_host = host.networks.Featurizer((3, 28, 28), hparams())
    assert type(from_host) is host.networks.MNIST_CNN


def test_weights_from_a_local_file(tmp_path):
    source = torchvision.models.resnet18(weights=None)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    featurizer = host.networks.Featurizer((3, 64, 64), hparams(
        backbone="resnet18", pretrained=str(tmp_path / "weights.safetensors")))
    assert torch.equal(featurizer.network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


@pytest.mark.parametrize("missing", ["layer4.1.conv2.weight", None])
def test_weights_that_do_not_fit(tmp_path, missing):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    if missing:
        del weights[missing]
    else:
        weights["extra.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"do not fit the backbone \\(first misfit: {missing or 'extra.weight'}\\)"):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18", pretrained=str(tmp_path / "w.safetensors")))


def test_bad_names_and_files():
    with pytest.raises(InputError, match="Nobody knows the backbone 'resnet19'.*timm name such as resnet"):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet19", pretrained=False))
    with pytest.raises(InputError, match="not a .safetensors file: give true, false or the path"):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18", pretrained="weights.pth"))


def test_weights_that_cannot_be_had(monkeypatch):
    """Without a network torchvision raises urllib's URLError, an OSError."""
    def offline(*args, **kwargs):
        raise OSError("<urlopen error no network>")
    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(InputError, match="The weights of the backbone resnet18 cannot be had .*\"pretrained\": false"):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18"))


def test_frozen_batch_norm_stays_frozen_in_training():
    featurizer = host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18", pretrained=False, freeze_bn=True))
    before = featurizer.network.bn1.running_mean.clone()
    featurizer.train()
    featurizer(torch.rand(4, 3, 64, 64))
    assert torch.equal(featurizer.network.bn1.running_mean, before)
