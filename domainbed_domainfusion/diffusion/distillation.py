"""Latent Distillation (LD), Algorithm 2: what the frozen LDM says about a classifier's confidence.

The classifier θ is reached only through p, its confidence in the true class: one number per image. Hence the whole
gradient of LD is Σ_i a_i ∇p_i with one number a_i = ∂LD_i/∂p_i per image, and θ gets it from the surrogate
Σ_i stopgrad(a_i) p_i, without a graph that joins classifier and LDM.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..seeding import generator_of
from ..stopwatch import Stopwatch
from .corruption import corrupt
from .forward_mode import Dual, UnsupportedOperation
from .memory import fitting
from .micro_batches import in_micro_batches, is_out_of_memory
from .model import LatentDiffusion
from .prompted import PromptedModel
from .prompts import Prompts

WEIGHTINGS = ("uniform", "one_minus_alpha_bar", "snr")
GRADIENTS = ("sds", "full")
GRADIENT_MODES = ("forward", "reverse", "auto")
TIMED_DEVICES = ("cuda",)  # where "auto" times both modes; on a CPU forward was measured (benchmarks/results)
WORTH = (
    0.9  # the part of forward's time that reverse must stay below: a near tie must not decide how a run's sums round
)


def surrogate(value: Tensor, slope: Tensor, confidence: Tensor) -> Tensor:
    """A scalar with the mean of LD_i as its value and the mean of a_i ∇p_i as its gradient; (B,) each."""
    value, slope = value.to(confidence), slope.to(confidence)
    return (value + slope * (confidence - confidence.detach())).mean()


class LatentDistillation:
    """LD_i = (1/T) Σ_draws w(t) · mean((ε − ε_φ(z_t, t, c_y))²) with z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, z = encode(x'(p)).

    The paper leaves w, T, the distribution of t, and the normalisation open; ours: t uniform, means instead of sums
    over draws and over latent elements, so that LD does not grow with T or with the image size.
    """

    def __init__(
        self,
        ldm: LatentDiffusion,
        prompts: Prompts,
        draws: int = 1,
        weighting: str = "uniform",
        gradient: str = "sds",
        corruption: str = "contrast",
        micro_batch: int | None = None,
        gradient_mode: str = "auto",
    ) -> None:
        """draws: T; weighting: w(t) = 1, 1 − ᾱ_t, or ᾱ_t / (1 − ᾱ_t) for "snr"; gradient: "full" (the gradient of
        LD) or "sds" (score distillation: without the U-Net's Jacobian); micro_batch: images at once, None for as many
        as fit by the first call's measure (`memory.fitting`); out of memory halves it for good. gradient_mode:
        "forward" needs no reverse pass (see `forward_mode`), "reverse" is torch's autograd, "auto" is forward unless
        the LDM has an operation without a rule, or, on a GPU, reverse fits into memory and is clearly faster there.
        """
        for name, value, known in (
            ("weighting", weighting, WEIGHTINGS),
            ("gradient", gradient, GRADIENTS),
            ("gradient_mode", gradient_mode, GRADIENT_MODES),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
        self.ldm, self.prompts, self.draws, self.gradient_mode = ldm, prompts, draws, gradient_mode
        self.gradient, self.corruption, self.micro_batch = gradient, corruption, micro_batch
        self._precision = torch.promote_types(ldm.dtype, torch.float32)
        alphas = ldm.alphas_cumprod.to(self._precision)
        self._alphas_cumprod = alphas
        self._weights = {
            "uniform": torch.ones_like(alphas),
            "one_minus_alpha_bar": 1 - alphas,
            "snr": alphas / (1 - alphas),
        }[weighting]

    @classmethod
    def of(cls, model: PromptedModel, hparams: dict[str, Any]) -> "LatentDistillation":
        """Latent Distillation as a run's hparams describe it."""
        return cls(
            model.ldm,
            model.prompts,
            draws=hparams["ld_draws"],
            weighting=hparams["ld_weighting"],
            gradient=hparams["ld_gradient"],
            corruption=hparams["ld_corruption"],
            micro_batch=hparams["ld_batch"] or None,
            gradient_mode=hparams["ld_gradient_mode"],
        )

    def coefficients(
        self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]
    ) -> tuple[Tensor, Tensor]:
        """(LD_i, a_i), each (B,), without a graph; `surrogate` makes a loss of them.

        images (B, 3, S, S) in [-1, 1]; labels (B,); confidence p (B,) in [0, 1]; seeds: one per image, for its t, ε
        and corruption.
        a_i is ∂LD_i/∂p_i for "full", and for "sds" the mean over draws of w(t)/n · ⟨ε_φ − ε, ∂z_t/∂p_i⟩ over the n
        elements of a latent.
        """

        def run(part: slice) -> tuple[Tensor, Tensor]:
            return self._micro_batch(images[part], labels[part], confidence[part], seeds[part])

        if self.micro_batch is None and len(images) > 1:
            self.micro_batch = fitting(lambda: in_micro_batches(run, 1, 1), self.ldm.device)
        parts, self.micro_batch = in_micro_batches(run, len(images), self.micro_batch)
        if self.gradient_mode == "auto" and self.ldm.device.type in TIMED_DEVICES:
            self._settle_mode(run, min(self.micro_batch or len(images), len(images)))
        values, slopes = zip(*parts)
        return torch.cat(values), torch.cat(slopes)

    def _settle_mode(self, run: Callable[[slice], object], size: int) -> None:
        """For all later calls: reverse if it takes a micro-batch of this size in less time, forward otherwise."""

        def seconds() -> float:
            with Stopwatch(self.ldm.device) as watch:
                run(slice(0, size))
            return watch.seconds

        forward = seconds()  # warm: the call at hand was forward
        self.gradient_mode, reverse = "reverse", float("inf")
        try:
            run(slice(0, size))  # the first of its kind is slower
            reverse = seconds()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if reverse >= WORTH * forward:
            self.gradient_mode = "forward"

    def _micro_batch(
        self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]
    ) -> tuple[Tensor, Tensor]:
        images = images.to(self.ldm.device, self._precision)
        p = confidence.detach().to(self.ldm.device, self._precision)
        embeddings = self.prompts.matched(labels)
        if self.gradient_mode == "reverse":
            return self._reverse(images, embeddings, p, seeds)
        try:
            return self._forward(images, embeddings, p, seeds)
        except UnsupportedOperation as error:
            if self.gradient_mode == "forward":
                raise InputError(str(error)) from error
            warnings.warn(f"{error} LD goes on in reverse mode.", stacklevel=2)
            self.gradient_mode = "reverse"
            return self._reverse(images, embeddings, p, seeds)

    @torch.no_grad()
    def _forward(self, images: Tensor, embeddings: Tensor, p: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Value and slope side by side, by dual numbers; for "sds" the U-Net sees the primal only."""
        corrupted = torch.autograd.functional.jvp(lambda q: self._corrupted(images, q, seeds), p, torch.ones_like(p))
        latents = self._encoded(Dual(*corrupted))
        t, noise = self._draw(latents.primal, seeds)
        value, slope = torch.zeros_like(p), torch.zeros_like(p)
        for draw in range(self.draws):
            weight = self._weights[t[draw]] / self.draws
            if self.gradient == "full":
                residual = self._residual(latents, t[draw], noise[draw], embeddings)
                primal, tangent = residual.primal, 2 * residual.tangent
            else:
                primal = self._residual(latents.primal, t[draw], noise[draw], embeddings)
                tangent = self._alphas_cumprod[t[draw]].sqrt()[:, None, None, None] * latents.tangent
            value += weight * _mean(primal.square())
            slope += weight * _mean(primal * tangent)
        return value, slope

    @torch.enable_grad()
    def _reverse(self, images: Tensor, embeddings: Tensor, p: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """The same by torch's autograd; for "sds" only the encoder is differentiated."""
        p.requires_grad_()
        latents = self._encoded(self._corrupted(images, p, seeds))
        t, noise = self._draw(latents, seeds)
        value, target = torch.zeros_like(p), torch.zeros_like(p)
        for draw in range(self.draws):
            weight = self._weights[t[draw]] / self.draws
            with torch.set_grad_enabled(self.gradient == "full"):
                residual = self._residual(latents, t[draw], noise[draw], embeddings)
                value = value + weight * _mean(residual.square())
            target = target + weight * self._alphas_cumprod[t[draw]].sqrt() * _mean(residual.detach() * latents)
        target = value if self.gradient == "full" else target
        if not target.requires_grad:  # the corruption "none" does not depend on p
            return value, torch.zeros_like(p)
        (slope,) = torch.autograd.grad(target.sum(), p)
        return value.detach(), slope

    def _corrupted(self, images: Tensor, p: Tensor, seeds: list[int]) -> Tensor:
        """x' (B, 3, S, S): Algorithm 2, line 1."""
        return corrupt(images, p, self.corruption, [generator_of(seed, "corruption") for seed in seeds])

    def _encoded(self, images: Tensor | Dual) -> Tensor | Dual:
        """z (B, C, h, w)."""
        return self.ldm.encode(images).to(self._precision)

    def _draw(self, latents: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """t (T, B) and ε (T, B, C, h, w), each image's from its own seed, drawn on the CPU so that devices agree."""
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn += [
                (
                    torch.randint(self.ldm.num_train_timesteps, (), generator=generator),
                    torch.randn(latents.shape[1:], generator=generator),
                )
                for _ in range(self.draws)
            ]
        shape = (len(seeds), self.draws)
        t, noise = (torch.stack(items).unflatten(0, shape).transpose(0, 1) for items in zip(*drawn))
        return t.to(latents.device), noise.to(latents)

    def _residual(self, latents: Tensor | Dual, t: Tensor, noise: Tensor, embeddings: Tensor) -> Tensor | Dual:
        """ε_φ(z_t, t, c) − ε of one draw, (B, C, h, w): Algorithm 2, line 5 and the inside of line 6."""
        alphas = self._alphas_cumprod[t][:, None, None, None]
        noised = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        return self.ldm.predict_noise(noised, t, embeddings).to(self._precision) - noise

    def noise_residual(self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]) -> Tensor:
        """ε_φ − ε, the mean over the draws, (B, C, h, w); arguments as for `loss`."""
        return self.noise_residuals(images, labels, confidence, seeds)[0].mean(0)

    @torch.no_grad()
    def noise_residuals(
        self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]
    ) -> tuple[Tensor, Tensor]:
        """What the LD noise images of the supplement's Figs. 2 to 4 are made of, and LD: no gradient, one encoding.

        Returns (ε_φ − ε of every draw (T, B, C, h, w), LD_i (B,)).
        """
        p = confidence.to(self.ldm.device, self._precision)
        latents = self._encoded(self._corrupted(images.to(self.ldm.device, self._precision), p, seeds))
        t, noise = self._draw(latents, seeds)
        embeddings = self.prompts.matched(labels)
        residuals = torch.stack(
            [self._residual(latents, t[draw], noise[draw], embeddings) for draw in range(self.draws)]
        )
        return residuals, (self._weights[t] * residuals.square().flatten(2).mean(2)).mean(0)


def _mean(x: Tensor) -> Tensor:
    """Over the elements of each image: (B, C, h, w) -> (B,)."""
    return x.flatten(1).mean(1)
