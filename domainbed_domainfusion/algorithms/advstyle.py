"""Adversarial Style Augmentation (AdvStyle; Zhang et al. 2023): styles of feature maps move against the loss."""

from typing import Any

import torch
from torch import Tensor, nn

from ..hosting import context, host
from ..hosting import hparams as table
from ..hosting.backbone_stages import stages_of
from ..seeding import generator_of


class AdvStyle(host.algorithms.ERM):
    """ERM with a `StyleLayer` after stages of the backbone: `advstyle_stages`, "123" for the first three.

    The layers' parameters are trained by the same optimizer, with reversed gradients. Predictions are ERM's: in eval
    mode the layers do nothing. With `advstyle_probability` 0 it is ERM, bit for bit.

    The layers are hooks, so the weights of the backbone keep their names.
    Raises InputError if the backbone has no feature map after one of the stages.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.style_layers = nn.ModuleList()
        for stage in stages_of(self.featurizer, input_shape, list(map(int, hparams["advstyle_stages"])), "AdvStyle"):
            layer = StyleLayer(stage.channels, stage.number, hparams)
            stage.module.register_forward_hook(layer.after)
            self.style_layers.append(layer)
        self.optimizer.add_param_group({"params": list(self.style_layers.parameters())})


class StyleLayer(nn.Module):
    """In training, a forward pass draws one of three, the second and third with probability `advstyle_probability`/2:

    1. x as it is.
    2. x̂·(σ + n₂·s_σ) + μ + n₁·s_μ, where x̂ = (x − μ)/σ, and μ, σ are mean and standard deviation of each image's
       channels. n₁, n₂ are standard normal for each image and channel. s_μ, s_σ (1, C, 1, 1) are learned: they rise
       where the loss does, by `advstyle_weight` times their gradient.
    3. The same with the standard deviations of μ and σ in the batch for s_μ and s_σ, as in DSU (Li et al., ICLR 2022).

    The learned ones begin as those of the first batch that is drawn for 2. All draws are seeded by the run, the stage
    and the number of the pass.
    """

    def __init__(self, channels: int, stage: int, hparams: dict[str, Any]):
        super().__init__()
        self.probability, self.weight = hparams["advstyle_probability"], hparams["advstyle_weight"]
        self.identity = (context.current().seed, "AdvStyle", stage)
        self.passes, self.begun = 0, False
        self.s_mean, self.s_deviation = (nn.Parameter(torch.ones(1, channels, 1, 1)) for _ in range(2))

    def after(self, module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
        """The forward hook of a stage: x (B, C, H, W) → the same shape."""
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        generator = generator_of(*self.identity, self.passes)
        self.passes += 1
        draw = torch.rand(1, generator=generator).item()
        if draw >= self.probability:
            return x
        mean, deviation = x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + EPSILON).sqrt()
        spread = self.learned if draw < self.probability / 2 else spreads
        s_mean, s_deviation = spread(mean, deviation)
        n1, n2 = (torch.randn(mean.shape, generator=generator).to(x) for _ in range(2))
        return (x - mean) / deviation * (deviation + n2 * s_deviation) + mean + n1 * s_mean

    def learned(self, mean: Tensor, deviation: Tensor) -> list[Tensor]:
        """s_μ and s_σ with reversed gradients. mean, deviation: (B, C, 1, 1), for their beginning."""
        if not self.begun:
            with torch.no_grad():
                for s, first in zip((self.s_mean, self.s_deviation), spreads(mean, deviation)):
                    s.copy_(first)
            self.begun = True
        return [reversed_gradient(s, self.weight) for s in (self.s_mean, self.s_deviation)]


EPSILON = 1e-6  # of both square roots, as in the authors' code


def spreads(mean: Tensor, deviation: Tensor) -> list[Tensor]:
    """Standard deviations over the batch: (B, C, 1, 1) twice → (1, C, 1, 1) twice. Zero for a batch of one image."""
    if len(mean) < 2:
        return [torch.zeros_like(value) for value in (mean, deviation)]
    return [(value.var(0, keepdim=True) + EPSILON).sqrt() for value in (mean, deviation)]


def reversed_gradient(value: Tensor, weight: float) -> Tensor:
    """The same values; their gradient is multiplied by −weight."""
    copy = value.clone()
    if copy.requires_grad:
        copy.register_hook(lambda gradient: -weight * gradient)
    return copy
