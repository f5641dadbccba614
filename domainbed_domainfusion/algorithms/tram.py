"""Trust Region Aware Minimization (TRAM; Sherborne et al., ICLR 2024), from the paper's Algorithms 1 and 2."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hosting import context, host
from ..hosting import hparams as table
from ..seeding import generator_of
from .ascent import at_weights, global_norm, gradients_of, moved_by, over, step_along, unmoved_statistics


class TRAM(host.algorithms.ERM):
    """SAM whose radius is measured at each step: how far predictions move inside a trust region.

    `tram_distance` says against what the predictions of θ_t on the minibatch x are compared:
    "previous": those of the weights before the last step; "initial": those of the weights at the first step, which are
    the pre-trained ones with an untrained classifier; "noised_input": those of θ_t on x + z, z ~ N(0, σ²).
    "fisher" measures no distance: the region is an ellipse in the Fisher information at x + z (Algorithm 2).

    The prior weights predict as the current ones do, in training mode, where dropout draws another mask. Batch-norm
    statistics move in the first pass only, as in the paper's code. The released optimizer moves the weights along a
    vector without the gradient's direction; here the direction is equation 7's. Frozen parameters take no part.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.run_seed, self.step = context.current().seed, 0
        self.prior: list[Tensor] | None = None  # θ_{t-1} or θ_0

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss at θ_t and the region's size."""
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        if self.prior is None:
            self.prior = [weight.detach().clone() for weight in trained]

        logits = self.predict(x)  # Algorithm 1, line 2
        loss = F.cross_entropy(logits, y)
        gradients = gradients_of(loss, trained)
        with unmoved_statistics(self.network):
            if self.hparams["tram_distance"] == "fisher":  # Algorithm 2
                size = self.hparams["tram_fisher_radius"]
                noised = gradients_of(F.cross_entropy(self.predict(self.noised(x)), y), trained)
                ascent = fisher_ascent(gradients, noised, size, self.hparams["tram_fisher_damping"])
            else:
                size = self.distance(x, logits.detach(), trained)  # line 3
                ascent = adaptive_ascent(trained, gradients, size)  # line 4
            with moved_by(trained, ascent):  # line 5
                perturbed = gradients_of(F.cross_entropy(self.predict(x), y), trained)  # line 6
        if self.hparams["tram_distance"] == "previous":
            self.prior = [weight.detach().clone() for weight in trained]
        step_along(self.optimizer, trained, perturbed)  # line 7
        self.step += 1
        return {"loss": loss.item(), "trust_region": float(size)}

    @torch.no_grad()
    def distance(self, x: Tensor, logits: Tensor, trained: list[Tensor]) -> Tensor:
        """d, a scalar from 0: the divergence of the current predictions, `logits` (B, classes), from the others."""
        if self.hparams["tram_distance"] == "noised_input":
            return divergence(self.predict(self.noised(x)), logits)
        if self.step == 0 or self.prior is None:  # the prior weights are the current ones
            return logits.new_zeros(())
        with at_weights(trained, self.prior):
            return divergence(self.predict(x), logits)

    def noised(self, x: Tensor) -> Tensor:
        """x + z: normal noise of standard deviation `tram_noise` on the classifier's input, seeded by run and step."""
        generator = generator_of(self.run_seed, "TRAM noise", self.step)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x + self.hparams["tram_noise"] * z.to(x.device)


def divergence(prior: Tensor, current: Tensor) -> Tensor:
    """Equations 4 and 5: KL(prior ‖ current) of class probabilities from logits (B, classes), mean over images."""
    return F.kl_div(current.log_softmax(-1), prior.log_softmax(-1), log_target=True, reduction="batchmean")


def adaptive_ascent(weights: list[Tensor], gradients: list[Tensor], distance: Tensor) -> list[Tensor]:
    """Equation 7, ASAM's direction: d·θ²∇L / ‖θ∇L‖₂, with θ² and θ∇L element by element."""
    scale = over(distance, global_norm(weight.detach() * gradient for weight, gradient in zip(weights, gradients)))
    return [scale * weight.detach() ** 2 * gradient for weight, gradient in zip(weights, gradients)]


def fisher_ascent(gradients: list[Tensor], noised: list[Tensor], radius: float, damping: float) -> list[Tensor]:
    """Equations 8 and 9: γ·F⁻¹∇L / √(∇L·F⁻¹∇L), where F is the square of the batch's gradient at x + z.

    F⁻¹ is 1/(1 + ηF), and γ scales it, as in Fisher SAM (Kim et al. 2022); equation 8 leaves both out.
    """
    directions = [gradient / (1 + damping * other**2) for gradient, other in zip(gradients, noised)]
    squared = torch.stack([(gradient * along).sum() for gradient, along in zip(gradients, directions)]).sum()
    scale = over(radius, squared.sqrt())
    return [scale * along for along in directions]
