"""A copy of the classifier that is fine-tuned on images of the diffusion model, for SDA."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pixels import PixelRange, from_store
from ..seeding import generator_of, preserved_rng, seed_of

LOWER_RATE = (10, 20, 25)  # epochs from which on the learning rate is a tenth of that before, as in the authors' code


@dataclass
class TunedCopy:
    """`network`: the copy, frozen and in eval mode. `began_with`: the digest of the weights that it began with."""

    network: nn.Module
    began_with: str


@torch.enable_grad()
def fine_tuned_copy(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    pixel_range: PixelRange,
    hparams: dict[str, Any],
    identity: tuple,
) -> nn.Module:
    """SGD on the cross-entropy for `sda_epochs` epochs, with momentum 0.9 and weight decay 1e-4.

    `network` stays as it is. images: (N, 3, S, S) uint8; labels: (N,). identity: of all random numbers, so the global
    generators do not move.
    """
    device = next(network.parameters()).device
    made = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=hparams["sda_lr"], momentum=0.9, weight_decay=1e-4)
    with preserved_rng():
        torch.manual_seed(seed_of(*identity))  # for dropout
        for epoch in range(hparams["sda_epochs"]):
            for group in optimizer.param_groups:
                group["lr"] = hparams["sda_lr"] * 0.1 ** sum(epoch >= later for later in LOWER_RATE)
            order = torch.randperm(len(labels), generator=generator_of(*identity, epoch))
            for rows in order.split(hparams["sda_batch"]):
                x = pixel_range.to_classifier(from_store(images[rows].to(device)))
                optimizer.zero_grad()
                F.cross_entropy(made(x), labels[rows].to(device)).backward()
                optimizer.step()
    return made.eval().requires_grad_(False)
