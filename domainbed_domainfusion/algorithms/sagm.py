"""Sharpness-Aware Gradient Matching (SAGM; Wang et al., CVPR 2023), from the paper's objective."""

import torch
import torch.nn.functional as F

from ..hosting import host
from .ascent import global_norm, gradients_of, moved_by, over, step_along, unmoved_statistics


class SAGM(host.algorithms.ERM):
    """Minimise  L(θ) + L_p(θ − α·∇L(θ)),  where L_p(θ) = L(θ + ρ·∇L(θ)/‖∇L(θ)‖) is SAM's perturbed loss.

    The second term is low where the gradients of L and L_p agree. The direction ∇L/‖∇L‖ is that of θ, as in the
    paper's code, so one displacement (ρ/‖∇L‖ − α)·∇L leads to the point of the second term, and two gradients are
    enough. They are taken as constants: no second derivative.

    The step goes along half the sum of both gradients, as in the paper's code: weight decay then weighs as it does in
    ERM. Batch-norm statistics move in the first pass only, as there. Frozen parameters take no part.
    """

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns L(θ) and the second term's loss."""
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]

        loss = F.cross_entropy(self.predict(x), y)
        gradients = gradients_of(loss, trained)
        scale = over(self.hparams["rho"], global_norm(gradients)) - self.hparams["sagm_alpha"]
        with moved_by(trained, (scale * gradient for gradient in gradients)), unmoved_statistics(self.network):
            perturbed_loss = F.cross_entropy(self.predict(x), y)
            perturbed = gradients_of(perturbed_loss, trained)
        step_along(self.optimizer, trained, ((a + b) / 2 for a, b in zip(gradients, perturbed)))
        return {"loss": loss.item(), "perturbed_loss": perturbed_loss.item()}
