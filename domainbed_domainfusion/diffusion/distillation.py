"""Latent Distillation (LD), Algorithm 2: what the frozen LDM says about a classifier's confidence.

The classifier θ is reached only through p, its confidence in the true class: one number per image. Hence the whole
gradient of LD is Σ_i a_i ∇p_i with one number a_i = ∂LD_i/∂p_i per image, and θ gets it from the surrogate
Σ_i stopgrad(a_i) p_i, without a graph that joins classifier and LDM.
"""

import torch
from torch import Tensor

from ..seeding import generator_of
from .corruption import corrupt
from .model import LatentDiffusion
from .prompts import Prompts

WEIGHTINGS = ("uniform", "one_minus_alpha_bar", "snr")
GRADIENTS = ("sds", "full")


class LatentDistillation:
    """LD_i = (1/T) Σ_draws w(t) · mean((ε − ε_φ(z_t, t, c_y))²), z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, z = encode(corrupt(x, p)).

    The paper leaves w, T, the distribution of t, and the normalisation open; ours: t uniform, means instead of sums
    over draws and over latent elements, so that LD does not grow with T or with the image size.
    """

    def __init__(self, ldm: LatentDiffusion, prompts: Prompts, draws: int = 1, weighting: str = "uniform",
                 gradient: str = "sds", corruption: str = "contrast", micro_batch: int | None = None) -> None:
        """draws: T; weighting: w(t) = 1, 1 − ᾱ_t, or ᾱ_t / (1 − ᾱ_t) for "snr"; gradient: "full" (the gradient of
        LD) or "sds" (score distillation: without the U-Net's Jacobian); micro_batch: images at once, None for all.
        """
        if weighting not in WEIGHTINGS or gradient not in GRADIENTS:
            raise ValueError(f"weighting is one of {WEIGHTINGS} and gradient one of {GRADIENTS}")
        self.ldm, self.prompts, self.draws = ldm, prompts, draws
        self.gradient, self.corruption, self.micro_batch = gradient, corruption, micro_batch
        self._precision = torch.promote_types(ldm.dtype, torch.float32)
        alphas = ldm.alphas_cumprod.to(self._precision)
        self._alphas_cumprod = alphas
        self._weights = {"uniform": torch.ones_like(alphas), "one_minus_alpha_bar": 1 - alphas,
                         "snr": alphas / (1 - alphas)}[weighting]

    def loss(self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]) -> Tensor:
        """The batch mean of LD, a scalar whose gradient is the batch mean of a_i ∇p_i.

        images (B, 3, S, S) in [-1, 1]; labels (B,); confidence p (B,) with the classifier's graph; seeds: one per
        image, for its t, ε and corruption.
        """
        value, slope = self.coefficients(images, labels, confidence.detach(), seeds)
        value, slope = value.to(confidence), slope.to(confidence)
        return (value + slope * (confidence - confidence.detach())).mean()

    def coefficients(self, images: Tensor, labels: Tensor, confidence: Tensor,
                     seeds: list[int]) -> tuple[Tensor, Tensor]:
        """(LD_i, a_i), each (B,), without a graph; arguments as for `loss`.

        a_i is ∂LD_i/∂p_i for "full", and for "sds" the mean over draws of w(t)/n · ⟨ε_φ − ε, ∂z_t/∂p_i⟩ over the n
        elements of a latent.
        """
        size = self.micro_batch or len(images)
        parts = [self._micro_batch(images[at:at + size], labels[at:at + size], confidence[at:at + size],
                                   seeds[at:at + size]) for at in range(0, len(images), size)]
        values, slopes = zip(*parts)
        return torch.cat(values), torch.cat(slopes)

    def _micro_batch(self, images: Tensor, labels: Tensor, confidence: Tensor,
                     seeds: list[int]) -> tuple[Tensor, Tensor]:
        embeddings = self.prompts.matched(labels)
        with torch.enable_grad():
            p = confidence.detach().to(self.ldm.device, self._precision).requires_grad_()
            latents = self._latents(images, p, seeds)
            t, noise = self._draw(latents, seeds)
            value, gradient = 0, 0
            for draw in range(self.draws):
                with torch.set_grad_enabled(self.gradient == "full"):
                    loss, residual = self._loss(latents, t[draw], noise[draw], embeddings)
                value = value + loss / self.draws
                scale = self._weights[t[draw]] * self._alphas_cumprod[t[draw]].sqrt() / (self.draws * latents[0].numel())
                gradient = gradient + scale[:, None, None, None] * residual
            target = value if self.gradient == "full" else (gradient * latents).flatten(1).sum(1)
            if not target.requires_grad:  # the corruption "none" does not depend on p
                return value, torch.zeros_like(p)
            slope, = torch.autograd.grad(target.sum(), p)
        return value.detach(), slope

    def _latents(self, images: Tensor, p: Tensor, seeds: list[int]) -> Tensor:
        """z (B, C, h, w): Algorithm 2, line 1, and the encoder."""
        generators = [generator_of(seed, "corruption") for seed in seeds]
        images = images.to(self.ldm.device, self._precision)
        return self.ldm.encode(corrupt(images, p, self.corruption, generators)).to(self._precision)

    def _draw(self, latents: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """t (T, B) and ε (T, B, C, h, w), each image's from its own seed, drawn on the CPU so that devices agree."""
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn += [(torch.randint(self.ldm.num_train_timesteps, (), generator=generator),
                       torch.randn(latents.shape[1:], generator=generator)) for _ in range(self.draws)]
        shape = (len(seeds), self.draws)
        t, noise = (torch.stack(items).unflatten(0, shape).transpose(0, 1) for items in zip(*drawn))
        return t.to(latents.device), noise.to(latents)

    def _loss(self, latents: Tensor, t: Tensor, noise: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithm 2, lines 5 and 6, for one draw: w(t) · mean((ε − ε_φ)²), (B,), and ε_φ − ε."""
        alphas = self._alphas_cumprod[t][:, None, None, None]
        noised = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        residual = self.ldm.predict_noise(noised, t, embeddings).to(self._precision) - noise
        return self._weights[t] * residual.square().flatten(1).mean(1), residual

    @torch.no_grad()
    def noise_residual(self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]) -> Tensor:
        """The LD noise images (B, C, h, w) of the supplement's Figs. 3 and 4: ε_φ − ε, the mean over the draws."""
        p = confidence.to(self.ldm.device, self._precision)
        latents = self._latents(images, p, seeds)
        t, noise = self._draw(latents, seeds)
        embeddings = self.prompts.matched(labels)
        residuals = [self._loss(latents, t[draw], noise[draw], embeddings)[1] for draw in range(self.draws)]
        return torch.stack(residuals).mean(0)
