"""Improved Test-Time Adaptation (ITTA; Chen et al., CVPR 2023): a learned consistency loss, in training and at test."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..hosting import context, host
from ..hosting import hparams as table
from ..hosting.backbone_stages import stages_of
from ..seeding import seed_of
from .after_stage import AfterStage, ElementWise
from .ascent import gradients_of, step_along, unmoved_statistics

# As in the authors' code.
BETA = 0.1  # MixStyle's shares are Beta(0.1, 0.1)
DEPTH_OF_LOSS = 10
SLOWER = 0.1  # times the learning rate, for f_w and for the blocks
ALIGNMENT = 0.1  # weight of the distance between gradients


class ITTA(host.algorithms.ERM):
    """CE(z) + CE(z′) + mean of f_w(z′ − z)², where z are an image's features, and z′ those of its restyled view.

    The view is restyled by `mixstyle` after the first or the second of the stages `itta_stages`. f_w is `ElementWise`.
    After each step of the network, one of f_w brings the standardised gradients of the consistency loss f_w(z′ − z)²
    and of the two CE nearer to each other; both are gradients by the featurizer's weights.

    In eval mode `predict` adapts to the batch before it answers: a block (`ElementWise`) after each of the stages makes
    `itta_test_steps` steps on the consistency loss. The network itself and its batch-norm statistics do not change. So
    an answer depends on its batch and on the batches before, from the last call of `eval()` or `train()` on; with
    `itta_reset` "batch", on its batch alone. In training mode `predict` is the plain network.

    The hooks leave the names of the backbone's weights. Raises InputError if there is no feature map after a stage.
    """

    test_optimizer: torch.optim.Optimizer | None

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.run_seed, self.step = context.current().seed, 0
        self.f_w = ElementWise(DEPTH_OF_LOSS, (self.featurizer.n_outputs,))
        self.f_w_optimizer = torch.optim.Adam(self.f_w.parameters(), lr=SLOWER * hparams["lr"])
        self.stages = []
        for stage in stages_of(self.featurizer, input_shape, list(map(int, hparams["itta_stages"])), "ITTA"):
            self.stages.append(AfterStage())
            stage.module.register_forward_hook(self.stages[-1].after)
        self._reset()

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss, the consistency loss in it, and
        the distance of the gradients.
        """
        self._reset()
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        classes, consistency = self._losses(x, y, 0)
        loss = classes + consistency

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        distance = self._align(x, y)
        self.step += 1
        return {"loss": loss.item(), "consistency": consistency.item(), "gradient_distance": distance}

    def _losses(self, x: Tensor, y: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        z, restyled = self._views(x, "training", self.step, draw)
        classes = F.cross_entropy(self.classifier(z), y) + F.cross_entropy(self.classifier(restyled), y)
        return classes, self.f_w(restyled - z).square().mean()

    def _align(self, x: Tensor, y: Tensor) -> float:
        """The step of f_w, on new draws."""
        trained = [weight for weight in self.featurizer.parameters() if weight.requires_grad]
        own: list[Tensor] = list(self.f_w.parameters())
        with unmoved_statistics(self.network):
            losses = self._losses(x, y, 1)
            classes = standardised(gradients_of(losses[0], trained, retain_graph=True))  # does not depend on f_w
            consistency = standardised(gradients_of(losses[1], trained, create_graph=True))
            distance = (consistency - classes).square().mean()
            step_along(self.f_w_optimizer, own, gradients_of(ALIGNMENT * distance, own))
        return distance.item()

    def _views(self, x: Tensor, *draw: Any) -> tuple[Tensor, Tensor]:
        """z and z′, (B, features) each. What is drawn is seeded by the run and `draw`."""
        z = self.featurizer(x)
        random = np.random.default_rng(seed_of(self.run_seed, "ITTA", *draw))
        stage = self.stages[random.integers(min(2, len(self.stages)))]
        share, partner = random.beta(BETA, BETA, len(x)), random.permutation(len(x))
        stage.mixing = torch.from_numpy(share).to(x).view(-1, 1, 1, 1), torch.from_numpy(partner).to(x.device)
        try:
            return z, self.featurizer(x)
        finally:
            stage.mixing = None

    def predict(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → logits (B, classes)."""
        if not self.training and self.hparams["itta_test_steps"]:
            if self.hparams["itta_reset"] == "batch":
                self._reset()
            for _ in range(self.hparams["itta_test_steps"]):
                with torch.enable_grad():
                    self._adapt(x)
        return self.network(x)

    def _adapt(self, x: Tensor) -> None:
        for stage in self.stages:
            stage.mapped = True
        z, restyled = self._views(x, "test", self.test_steps)
        loss = self.hparams["itta_test_weight"] * self.f_w(restyled - z).square().mean()
        blocks = [stage.block for stage in self.stages if stage.block is not None]
        own: list[Tensor] = [weight for block in blocks for weight in block.parameters()]
        if self.test_optimizer is None:
            self.test_optimizer = torch.optim.Adam(own, lr=SLOWER * self.hparams["lr"])
        step_along(self.test_optimizer, own, gradients_of(loss, own))
        self.test_steps += 1

    def _reset(self) -> None:
        """No block: the plain network."""
        self.test_steps, self.test_optimizer = 0, None
        for stage in self.stages:
            stage.mapped, stage.block = False, None

    def train(self, mode: bool = True) -> "ITTA":
        """As for every module. The blocks begin anew."""
        self._reset()
        return super().train(mode)


def standardised(gradients: list[Tensor]) -> Tensor:
    """All entries, (n,), less their mean and by their standard deviation; both count as constants."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return (flat - flat.mean().detach()) / flat.std().detach().clamp_min(1e-12)
