"""Featurizers by image size, and the classifier on top. Submodules have DomainBed's names, as in its `model.pkl`."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from ..errors import InputError

AUGMIX_RESNET50 = "resnet50.ram_in1k"  # timm's name


class MNIST_CNN(nn.Module):
    """Four 3 × 3 convolutions with group normalisation: (B, C, 28, 28) -> (B, 128)."""

    n_outputs = 128

    def __init__(self, input_shape: tuple[int, int, int]):
        super().__init__()
        widths = (input_shape[0], 64, 128, 128, 128)
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            self.add_module(f"conv{i + 1}", nn.Conv2d(before, after, 3, stride=2 if i == 1 else 1, padding=1))
        for i, width in enumerate(widths[1:]):
            self.add_module(f"bn{i}", nn.GroupNorm(8, width))
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(4):
            convolution, normalisation = self.get_submodule(f"conv{i + 1}"), self.get_submodule(f"bn{i}")
            x = normalisation(F.relu(convolution(x)))
        return self.avgpool(x).flatten(1)


class WideBlock(nn.Module):
    """A pre-activation residual block whose second convolution has the stride."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1)
        same = stride == 1 and before == after
        self.shortcut = nn.Sequential(*([] if same else [nn.Conv2d(before, after, 1, stride=stride)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(y))) + self.shortcut(x)


class WideResNet(nn.Module):
    """Wide-ResNet 16-2 (Zagoruyko & Komodakis 2016) without its last layer: (B, C, 32, 32) -> (B, 128)."""

    n_outputs = 128

    def __init__(self, input_shape: tuple[int, int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1)
        for i, (before, after) in enumerate(((16, 32), (32, 64), (64, 128))):
            blocks = WideBlock(before, after, stride=1 if i == 0 else 2), WideBlock(after, after, stride=1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(self.n_outputs, momentum=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for i in range(3):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1)


def _pretrained(name: str, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        return load()
    except OSError as error:  # no network, and not in the local cache
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The pre-trained weights of {name} cannot be had ({reason}): run once with a network, or "
            "start from random weights with --hparams "
            '\'{"backbone": "resnet50", "pretrained": false}\'.'
        ) from error


def _pretrained_resnet(hparams: dict[str, Any]) -> tuple[nn.Module, int]:
    """The network that the hparams name, and its number of features; `resnet50_augmix` overrides `resnet18`."""
    build, weights, width = (
        (torchvision.models.resnet18, "ResNet18_Weights", 512)
        if hparams["resnet18"]
        else (torchvision.models.resnet50, "ResNet50_Weights", 2048)
    )
    if not hparams["resnet50_augmix"]:
        weights = getattr(torchvision.models, weights).IMAGENET1K_V1
        return _pretrained(build.__name__, lambda: build(weights=weights)), width
    build()  # DomainBed builds this network too and discards it: later random draws must be the same
    try:
        import timm  # only here: no other network needs it
    except ImportError as error:
        raise InputError(
            "resnet50_augmix needs timm: pip install timm, or set --hparams '{\"resnet50_augmix\": false}'."
        ) from error
    return _pretrained(AUGMIX_RESNET50, lambda: timm.create_model(AUGMIX_RESNET50, pretrained=True)), 2048


class ResNet(nn.Module):
    """A pre-trained ResNet without its last layer, then dropout: (B, 3, 224, 224) -> (B, n_outputs).

    With `freeze_bn` its batch normalisation stays in eval mode. Raises InputError if the weights cannot be had.
    """

    def __init__(self, input_shape: tuple[int, int, int], hparams: dict[str, Any]):
        super().__init__()
        self.network, self.n_outputs = _pretrained_resnet(hparams)
        self.network.fc = nn.Identity()
        self.freeze_bn = hparams["freeze_bn"]
        self.dropout = nn.Dropout(hparams["resnet_dropout"])
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x))

    def train(self, mode: bool = True) -> "ResNet":
        super().train(mode)
        if self.freeze_bn:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def Featurizer(input_shape: tuple[int, int, int], hparams: dict[str, Any]) -> MNIST_CNN | WideResNet | ResNet:
    """The featurizer for images of that shape (C, H, W); it has `n_outputs`. Raises InputError for other sizes."""
    if hparams["vit"]:
        raise InputError(
            "The embedded host has no vision transformer: unset the hparam vit, or use a DomainBed checkout."
        )
    size = tuple(input_shape[1:])
    if size == (28, 28):
        return MNIST_CNN(input_shape)
    if size == (32, 32):
        return WideResNet(input_shape)
    if size == (224, 224):
        return ResNet(input_shape, hparams)
    raise InputError(f"There is no featurizer for images of {size} pixels: use 28, 32 or 224.")


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """(B, in_features) -> logits (B, out_features); nonlinear: two hidden layers, each half as wide as before."""
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    half, quarter = in_features // 2, in_features // 4
    return nn.Sequential(
        nn.Linear(in_features, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, out_features)
    )
