"""Sharpness-Aware Minimization (Foret et al. 2021), in the form that domain generalization papers run in DomainBed."""

import torch
import torch.nn.functional as F

from ..hosting import host


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
        gradients = _gradients(loss, trained)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        scale = self.hparams["rho"] / norm.clamp_min(1e-12)  # a zero gradient has no ascent direction

        with torch.no_grad():
            originals = [weight.clone() for weight in trained]
            for weight, gradient in zip(trained, gradients):
                weight.add_(scale * gradient)
        gradients = _gradients(F.cross_entropy(self.predict(x), y), trained)
        with torch.no_grad():
            for weight, original, gradient in zip(trained, originals, gradients):
                weight.copy_(original)
                weight.grad = gradient
        self.optimizer.step()
        return {"loss": loss.item()}


def _gradients(loss: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """One gradient per weight; zero for a weight that the loss does not use."""
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients)]
