"""The stages of a convolutional backbone, found by name, for algorithms that act on the feature maps between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError

#: Where stage k ends, for k = 1, 2, …: torchvision's ResNets and the host's WideResNet; torchvision's RegNets. timm's
#: networks say it themselves.
NAMES = ("layer{}", "trunk_output.block{}")
TIMM_STAGES = 4  # those with strides 4, 8, 16 and 32
STEM = "maxpool"  # of a ResNet: the end of stage 0


@dataclass(frozen=True)
class Stage:
    """The end of one stage: a module, and the size of the feature maps (B, channels, height, width) that it returns."""

    number: int
    module: nn.Module
    channels: int
    pixels: int  # height × width


def stages_of(featurizer: nn.Module, input_shape: Sequence[int], numbers: Sequence[int], what: str) -> list[Stage]:
    """The stages with these numbers, of any backbone of ours or of the host's. 0 is the end of a ResNet's stem.

    what: who needs them, for the sentence. One image of zeros (C, H, W) passes the featurizer, in eval mode.
    Raises InputError if a stage does not exist or returns no feature map of two pixels or more.
    """
    modules = _modules(featurizer)
    shapes = _output_shapes(featurizer, modules, input_shape)
    maps = {number: shape for number, shape in shapes.items() if len(shape) == 4}
    network = type(getattr(featurizer, "network", featurizer)).__name__
    missing = [number for number in numbers if number not in maps]
    if missing:
        raise InputError(
            f"{what} needs the feature map after stage {missing[0]} of the backbone, but the stages with a feature map "
            f"in this {network} are {', '.join(map(str, maps)) or 'none'}: choose other stages, or a ResNet for "
            "backbone."
        )
    found = [Stage(number, modules[number], maps[number][1], maps[number][2] * maps[number][3]) for number in numbers]
    for stage in found:
        if stage.pixels < 2:
            raise InputError(
                f"{what} needs feature maps of two pixels or more, but after stage {stage.number} of this {network} "
                "one pixel is left: leave that stage out, or train on larger images."
            )
    return found


def _modules(featurizer: nn.Module) -> dict[int, nn.Module]:
    """Number → the module whose output ends the stage; empty for a network that we do not know."""
    network: Any = getattr(featurizer, "network", featurizer)
    parts = dict(network.named_modules())
    found = {0: parts[STEM]} if STEM in parts else {}
    if isinstance(getattr(network, "feature_info", None), list):  # timm
        ends = [info["module"] for info in network.feature_info][-TIMM_STAGES:]
        return {**found, **{k: parts[name] for k, name in enumerate(ends, 1) if name in parts}}
    names = next((name for name in NAMES if name.format(1) in parts), None)
    if names is None and {"conv1", "bn0", "bn3"} <= parts.keys():  # the host's MNIST_CNN: each bn follows its relu
        return {k: parts[f"bn{k - 1}"] for k in range(1, 5)}
    if names is not None:
        found |= {k: parts[names.format(k)] for k in range(1, TIMM_STAGES + 1) if names.format(k) in parts}
    return found


def _output_shapes(featurizer: nn.Module, modules: dict[int, nn.Module], input_shape: Sequence[int]) -> dict:
    """Number → the shape of the stage's output, for those that return one tensor."""
    shapes = {}

    def remember(number: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                shapes[number] = tuple(output.shape)

        return hook

    handles = [module.register_forward_hook(remember(number)) for number, module in modules.items()]
    featurizer.eval()
    try:
        with torch.no_grad():
            featurizer(torch.zeros(1, *input_shape))
    finally:
        featurizer.train()
        for handle in handles:
            handle.remove()
    return shapes
