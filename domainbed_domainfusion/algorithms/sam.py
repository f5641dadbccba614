"""Sharpness-Aware Minimization (Foret et al. 2021), in the form that domain generalization papers run in DomainBed."""

import torch
import torch.nn.functional as F

from ..hosting import host
from .ascent import global_norm, gradients_of, moved_by, over, step_along


class SAM(host.algorithms.ERM):
    """Minimise the loss at the worst point of a ball of radius `rho` in weight space.

    The ball's norm is one L2 norm over all trained parameters. Frozen parameters (`requires_grad` is False) take no
    part. Batch-norm statistics move in both passes.
    """

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss at the unperturbed weights."""
        x = torch.cat([x for x, _ in minibatches])
        y = torch.cat([y for _, y in minibatches])
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]

        loss = F.cross_entropy(self.predict(x), y)
        gradients = gradients_of(loss, trained)
        scale = over(self.hparams["rho"], global_norm(gradients))
        with moved_by(trained, (scale * gradient for gradient in gradients)):
            gradients = gradients_of(F.cross_entropy(self.predict(x), y), trained)
        step_along(self.optimizer, trained, gradients)
        return {"loss": loss.item()}
