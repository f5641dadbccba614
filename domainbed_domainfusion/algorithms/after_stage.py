"""What ITTA puts behind a stage of the backbone: MixStyle (Zhou et al., ICLR 2021), and blocks that adapt at test."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# As in ITTA's code.
EPSILON = 1e-6  # in MixStyle's standard deviations
DEPTH = 5  # of a block


class AfterStage:
    """What happens to the feature map after a stage. Its blocks are no part of the network, and are never saved."""

    def __init__(self) -> None:
        self.mixing: tuple[Tensor, Tensor] | None = None  # of `mixstyle`, while z′ is computed
        self.mapped = False
        self.block: ElementWise | None = None  # made for the first map, (C, H, W)

    def after(self, module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
        """The forward hook of a stage: x (B, C, H, W) → the same shape.

        Negative values pass by the block, so that a new block changes nothing. After a ReLU only z′ has any.
        """
        if self.mixing is not None:
            x = mixstyle(x, *self.mixing)
        if not self.mapped:
            return x
        if self.block is None:
            self.block = ElementWise(DEPTH, x.shape[1:]).to(x)
        return self.block(x.clamp_min(0)) + x.clamp_max(0)


class ElementWise(nn.Module):
    """w_n·relu(… relu(w_1·x + b_1) …) + b_n, element by element: (B, *shape) → the same. At first w is 1 and b is 0."""

    def __init__(self, depth: int, shape: tuple[int, ...]):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(shape)) for _ in range(depth)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        *first, (weight, bias) = zip(self.weights, self.biases)
        for w, b in first:
            x = F.relu(w * x + b)
        return weight * x + bias


def mixstyle(x: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """Each map with mean and standard deviation mixed: `share` (B, 1, 1, 1) its own, the rest those of image `partner`
    (B,) of the batch. x: (B, C, H, W). No gradient passes through the statistics.
    """
    mean, deviation = x.mean((2, 3), keepdim=True).detach(), (x.var((2, 3), keepdim=True) + EPSILON).sqrt().detach()
    mixed_mean, mixed = (share * own + (1 - share) * own[partner] for own in (mean, deviation))
    return (x - mean) / deviation * mixed + mixed_mean
