"""Hessian Alignment (Hemati et al., ICCV 2023): gradients and Hessians of the classifier agree between domains."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hosting import context, host
from ..hosting import hparams as table
from ..seeding import generator_of


class HessianAlignment(host.algorithms.ERM):
    """L + 1/E Σ_e (α‖c_e − c‖² + β‖∇L_e − ∇L‖²), where c_e says how the loss of domain e is curved.

    L is the mean of the E domains' losses. All derivatives are by the weights θ of the classifier alone; the penalty's
    own gradient reaches the featurizer as well. c and ∇L, those of L, are taken as constants. A subclass says what the
    curvature is. With α = β = 0 it is ERM, bit for bit. Frozen parameters take no part.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.run_seed, self.step = context.current().seed, 0

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss with the penalty, and that alone.

        The domains' minibatches are of one size, so L is the mean over all images.
        """
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        weights = [weight for weight in self.classifier.parameters() if weight.requires_grad]
        logits = self.predict(x)
        domains = zip(logits.split([len(labels) for _, labels in minibatches]), minibatches)
        gradients = torch.stack([gradient(F.cross_entropy(part, labels), weights) for part, (_, labels) in domains])
        curvatures, of_the_mean = self.curvatures(gradients, weights)
        alpha, beta = (self.hparams[f"{type(self).prefix}_{name}"] for name in ("alpha", "beta"))
        penalty = alpha * spread(curvatures, of_the_mean) + beta * spread(gradients, gradients.mean(0))
        loss = F.cross_entropy(logits, y) + penalty

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.item(), "penalty": penalty.item()}

    prefix: str  # of the names of its hparams

    def curvatures(self, gradients: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        """c_e of each domain (E, n) and c of their mean (n,), differentiable, from ∇L_e (E, n) by the n weights."""
        raise NotImplementedError


class HGP(HessianAlignment):
    """The curvature is the Hessian-gradient product H·∇L. It is the gradient of ½‖∇L‖², so no Hessian is built.

    The authors' code multiplies ‖∇L‖ with its gradient. That is the same, but undefined where ∇L is zero.
    """

    prefix = "hgp"

    def curvatures(self, gradients: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        products = [gradient((each**2).sum() / 2, weights) for each in (*gradients, gradients.mean(0))]
        return torch.stack(products[:-1]), products[-1]


class Hutchinson(HessianAlignment):
    """The curvature is Hutchinson's estimate of the Hessian's diagonal: the mean over probes z of z ⊙ (H·z).

    z has entries ±1, drawn anew at each step and seeded by run and step. Departure: all domains have the same probes,
    where the authors' code draws others for each. The estimate for L is then the mean of the domains' estimates.
    """

    prefix = "hutchinson"

    def curvatures(self, gradients: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        generator = generator_of(self.run_seed, "Hutchinson probes", self.step)
        size = (self.hparams["hutchinson_probes"], gradients.shape[1])
        z = (2 * torch.randint(2, size, generator=generator) - 1).to(gradients)
        diagonals = torch.stack([(z * products_with(z, each, weights)).mean(0) for each in gradients])
        return diagonals, diagonals.mean(0)


def gradient(value: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of a scalar by all weights, (n,), differentiable itself."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, weights, create_graph=True)])


def products_with(z: Tensor, gradient: Tensor, weights: list[Tensor]) -> Tensor:
    """H·z for each row z of (P, n), where H is the Jacobian of the gradient (n,): (P, n), differentiable."""
    parts = torch.autograd.grad(gradient, weights, z, create_graph=True, is_grads_batched=True)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def spread(rows: Tensor, centre: Tensor) -> Tensor:
    """The mean over rows of ‖row − centre‖², with the centre as a constant: (E, n), (n,) → scalar."""
    return ((rows - centre.detach()) ** 2).sum(1).mean()
