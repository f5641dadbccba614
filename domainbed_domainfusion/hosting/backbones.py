"""Featurizers by name, for every algorithm of the host: hparams `backbone`, `pretrained` and `channels_last`.

`host` (the default) leaves the choice to the host. Every other name gives the penultimate features of a torchvision or
timm classifier; the host's hparams `resnet_dropout` and `freeze_bn` apply to it.
"""

import difflib
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from . import host
from .packaged_weights import PACKAGES, packaged_weights

#: name -> (torchvision's name, its weights). The ResNets have ImageNet's first (V1) weights, as in the paper, and not
#: AugMix's. SWAG's linear weights leave the trunk as it was pre-trained on Instagram's images.
TORCHVISION = {
    "resnet18": ("resnet18", "IMAGENET1K_V1"),
    "resnet50": ("resnet50", "IMAGENET1K_V1"),
    "regnety_16gf_swag": ("regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1"),
}
#: A Vision Transformer for images of any size, for small data and for tests. It has no published weights.
TINY_VIT, TINY_VIT_WIDTH = "tiny_vit", 64


def featurizer_or(host_featurizer: Callable) -> Callable:
    """`Featurizer(input_shape, hparams)` that builds the backbone named in hparams, or calls the host's own."""

    @functools.wraps(host_featurizer)
    def featurizer(input_shape, hparams):
        network = _named_or_host(host_featurizer, input_shape, hparams)
        if hparams.get("channels_last", False):
            # The weights are enough: a convolution with such weights brings its input and its output to that layout.
            network.to(memory_format=torch.channels_last)
        return network

    return featurizer


def _named_or_host(host_featurizer: Callable, input_shape: tuple, hparams: dict) -> nn.Module:
    name = hparams.get("backbone", "host")
    if name == "host":
        return _host_choice(host_featurizer, input_shape, hparams)
    if name == "mnist_cnn":  # it has no published weights, and its global mean fits any image size
        return host.networks.MNIST_CNN(input_shape)
    return Backbone(name, input_shape, hparams)


def _host_choice(host_featurizer: Callable, input_shape: tuple, hparams: dict) -> nn.Module:
    try:
        return host_featurizer(input_shape, hparams)
    except OSError as error:  # DomainBed lets urllib's and the hub's errors through
        raise InputError(_no_weights("host, DomainBed's own choice,", error, named=False)) from error


class Backbone(nn.Module):
    """A named network without its classification head: (B, C, H, W) normalised pixels → (B, n_outputs) features.

    Raises InputError for an unknown name, or for weights that cannot be loaded.
    """

    def __init__(self, name: str, input_shape: tuple, hparams: dict):
        super().__init__()
        self.hparams = hparams
        pretrained = hparams.get("pretrained", True)
        if name == TINY_VIT:
            self.network, self.n_outputs = _tiny_vit(input_shape), TINY_VIT_WIDTH
        elif name in TORCHVISION:
            self.network, self.n_outputs = _from_torchvision(name, input_shape, pretrained is True)
        else:
            self.network, self.n_outputs = _from_timm(name, input_shape, pretrained is True)
        if pretrained in PACKAGES:
            self.network.load_state_dict(packaged_weights(pretrained, self.network))
        elif isinstance(pretrained, str):
            _load_file(self.network, pretrained)
        self.dropout = nn.Dropout(hparams["resnet_dropout"])
        self.activation = nn.Identity()  # the host's URM replaces it
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dropout(self.network(x)))

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.hparams["freeze_bn"]:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def _from_torchvision(name: str, input_shape: tuple, pretrained: bool) -> tuple[nn.Module, int]:
    import torchvision

    architecture, weights = TORCHVISION[name]
    if input_shape[0] != 3:
        raise InputError(
            f"The backbone {name} takes RGB images, but this dataset's have {input_shape[0]} channels: "
            'use "backbone": "host" for it.'
        )
    try:
        network = torchvision.models.get_model(architecture, weights=weights if pretrained else None)
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(_no_weights(name, error)) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # a download cut short, or another file there
        raise InputError(
            f"The weights of the backbone {name} in {torch.hub.get_dir()}/checkpoints are broken "
            f"({_reason(error)}): delete that file and run once with a network."
        ) from error
    n_outputs = network.fc.in_features
    network.fc = nn.Identity()
    return network, n_outputs


def _from_timm(name: str, input_shape: tuple, pretrained: bool) -> tuple[nn.Module, int]:
    import timm  # here, because it takes a second and most runs do not need it

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(
            f"Nobody knows the backbone {name!r}: give host, mnist_cnn, {TINY_VIT}, {', '.join(TORCHVISION)} or a "
            f"timm name{' such as ' + ', '.join(near) if near else ''}."
        )
    try:
        network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=input_shape[0])
    except (OSError, RuntimeError) as error:
        raise InputError(_no_weights(name, error)) from error
    return network, network.num_features


def _tiny_vit(input_shape: tuple) -> nn.Module:
    """Four blocks, on patches whose side is about a seventh of the image's."""
    from timm.models.vision_transformer import VisionTransformer

    channels, height, width = input_shape
    sides = range(max(1, min(height, width) // 7), 0, -1)
    side = next(side for side in sides if height % side == width % side == 0)
    return VisionTransformer(
        (height, width), side, channels, num_classes=0, embed_dim=TINY_VIT_WIDTH, depth=4, num_heads=4, mlp_ratio=2
    )


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _no_weights(name: str, error: Exception, named: bool = True) -> str:
    name_one = "" if named else 'name the backbone ("backbone": "resnet50") and '
    return (
        f"The weights of the backbone {name} cannot be had ({_reason(error)}): run once with a network, or "
        f'{name_one}give a local file as "pretrained": "weights.safetensors", or start untrained with '
        '"pretrained": false.'
    )


def _load_file(network: nn.Module, file: str) -> None:
    """Load a .safetensors state dict into the headless network; the file may hold a classification head as well."""
    import safetensors
    import safetensors.torch

    if not Path(file).is_file() or Path(file).suffix != ".safetensors":
        raise InputError(
            f"The hparam pretrained names {file!r}, which is not a .safetensors file: give true, false, "
            f"{', '.join(PACKAGES)} or the path of one (pickled .pth files are not read; "
            "safetensors.torch.save_file converts)."
        )
    try:
        weights = safetensors.torch.load_file(file)
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(
            f"The weights in {file} do not fit the backbone ({str(error).splitlines()[0]}): give the file "
            "of the same architecture."
        ) from error
    body = [name for name in unexpected if not name.startswith(("fc.", "head.", "classifier."))]
    if missing or body:
        raise InputError(
            f"The weights in {file} do not fit the backbone (first misfit: {(missing + body)[0]}): give "
            "the file of the same architecture."
        )
