"""How well φ predicts the noise of an image under a mixture of prompts, and how that depends on the mixture."""

import torch
from torch import Tensor

from ..errors import InputError
from .micro_batches import in_micro_batches
from .model import LatentDiffusion
from .prompts import Prompts


class MixedPromptLoss:
    """L(p) = mean over draws and elements of (ε_φ(z_t, t, c) − ε)², z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, c = Σ_k p_k c_k.

    c_k is the text embedding of class k's prompt. The loss of Diffusion-TTA (Prabhudesai et al., NeurIPS 2023). A
    classifier that gives p gets its gradient from ∂L/∂p alone, so no graph joins classifier and U-Net.
    """

    def __init__(self, ldm: LatentDiffusion, prompts: Prompts, batch: int | None = None) -> None:
        """batch: draws at once, None for all. If the memory does not suffice it is halved for good."""
        self.ldm, self.prompts, self.batch = ldm, prompts, batch
        self._precision = torch.promote_types(ldm.dtype, torch.float32)

    @torch.no_grad()
    def latents(self, image: Tensor) -> Tensor:
        """z: (1, 3, S, S) in [-1, 1] → (1, C, h, w), the posterior's mean, scaled."""
        return self.ldm.encode(image).to(self._precision)

    @torch.enable_grad()
    def __call__(self, latents: Tensor, probabilities: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(L, ∂L/∂p (classes,)) of one image, without a graph.

        latents: (1, C, h, w); probabilities: p (classes,); t: (N,), ε: (N, C, h, w) of N draws.
        Raises InputError if activations or gradients overflow in the LDM's dtype (float16).
        """
        embeddings = self.prompts.conditional.to(self._precision)
        mixed = torch.einsum("k,kld->ld", probabilities.detach().to(embeddings), embeddings)[None].requires_grad_()
        t, noise = t.to(self.ldm.device), noise.to(latents)
        alphas = self.ldm.alphas_cumprod.to(self._precision)[t][:, None, None, None]
        noised = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise

        def of_part(part: slice) -> tuple[Tensor, Tensor]:
            predicted = self.ldm.predict_noise(noised[part], t[part], mixed.expand(len(t[part]), -1, -1))
            # The sum, because in float16 the gradient of the mean would vanish inside the U-Net.
            value = (predicted.to(self._precision) - noise[part]).square().sum()
            (slope,) = torch.autograd.grad(value, mixed)
            return value.detach(), slope

        parts, self.batch = in_micro_batches(of_part, len(t), self.batch)
        value, slope = (torch.stack(each).sum(0) / noise.numel() for each in zip(*parts))
        if not (value.isfinite() and slope.isfinite().all()):
            raise InputError(
                f"The loss of the diffusion model is not finite in {self.ldm.dtype}: run it in bfloat16 or float32."
            )
        return value, torch.einsum("ld,kld->k", slope[0], embeddings)
