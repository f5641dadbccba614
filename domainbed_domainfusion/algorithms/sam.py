"""Sharpness-Aware Minimization (Foret et al. 2021), as the domain generalization literature runs it in DomainBed."""

import torch
import torch.nn.functional as F

from ..hosting import host


class SAM(host.algorithms.ERM):
    """Minimise the loss at the worst point of a ball of radius `rho` in weight space.

    One norm over all tensors; batch-norm statistics move in both passes.
    """

    def update(self, minibatches, unlabeled=None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss at the unperturbed weights."""
        x = torch.cat([x for x, _ in minibatches])
        y = torch.cat([y for _, y in minibatches])

        loss = F.cross_entropy(self.predict(x), y)
        gradients = self._gradients(loss)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        scale = self.hparams["rho"] / norm.clamp_min(1e-12)  # a zero gradient has no ascent direction

        with torch.no_grad():
            weights = [weight.clone() for weight in self.network.parameters()]
            for weight, gradient in zip(self.network.parameters(), gradients):
                weight.add_(scale * gradient)
        gradients = self._gradients(F.cross_entropy(self.predict(x), y))
        with torch.no_grad():
            for weight, original, gradient in zip(self.network.parameters(), weights, gradients):
                weight.copy_(original)
                weight.grad = gradient
        self.optimizer.step()
        return {"loss": loss.item()}

    def _gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        weights = list(self.network.parameters())
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients)]
