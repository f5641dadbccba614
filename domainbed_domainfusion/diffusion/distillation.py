"""Latent Distillation (LD), Algorithm 2: what the frozen LDM says about a classifier's confidence.

LD depends on the classifier θ only through p, its confidence in the true class: one number per image. The gradient of
LD is therefore Σ_i a_i ∇p_i with one number a_i = ∂LD_i/∂p_i per image. The surrogate Σ_i stopgrad(a_i) p_i has the
same gradient, and needs no graph that joins classifier and LDM.
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
from .dual import TensorOrDual
from .forward_mode import Dual, UnsupportedOperation
from .memory import items_that_fit
from .micro_batches import in_micro_batches, is_out_of_memory
from .model import LatentDiffusion
from .prompted import PromptedModel
from .prompts import Prompts

WEIGHTINGS = ("uniform", "one_minus_alpha_bar", "snr")
GRADIENTS = ("sds", "full")
GRADIENT_MODES = ("forward", "reverse", "auto")
#: Where "auto" times both modes. On a CPU forward mode is the faster one (benchmarks/results).
TIMED_DEVICES = ("cuda",)
#: "auto" picks reverse mode only if it takes less than this share of forward mode's time. The two modes round
#: differently, so chance must not decide a near tie.
REVERSE_TIME_LIMIT = 0.9


def surrogate(value: Tensor, slope: Tensor, confidence: Tensor) -> Tensor:
    """A scalar: its value is the mean of LD_i, its gradient the mean of a_i ∇p_i.

    value: LD_i; slope: a_i; confidence: p_i with its graph; (B,) each.
    """
    value, slope = value.to(confidence), slope.to(confidence)
    return (value + slope * (confidence - confidence.detach())).mean()


class LatentDistillation:
    """LD_i = (1/T) Σ_draws w(t) · mean((ε − ε_φ(z_t, t, c_y))²) with z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, z = encode(x'(p)).

    The paper leaves w, T, the distribution of t and the normalisation open. Ours: t is uniform; means instead of sums
    over draws and over latent elements. LD then does not grow with T or with the image size.
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
        """Raises ValueError for an unknown weighting, gradient or gradient_mode.

        draws: T. weighting: w(t) = 1, 1 − ᾱ_t, or ᾱ_t / (1 − ᾱ_t) for "snr".
        gradient: "full" is the gradient of LD; "sds" (score distillation) leaves out the U-Net's Jacobian.
        micro_batch: images at once. With None the first call measures how many fit (`memory.items_that_fit`). If the
        memory does not suffice it is halved for good.
        gradient_mode: "forward" needs no reverse pass (see `forward_mode`), "reverse" is torch's autograd. "auto" is
        forward, with two exceptions: the LDM has an operation without a forward-mode rule; or, on a GPU, reverse fits
        into memory and is clearly faster.
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
        """(LD_i, a_i), each (B,), without a graph; `surrogate` turns them into a loss.

        images (B, 3, S, S) in [-1, 1]; labels (B,); confidence p (B,) in [0, 1]; seeds: one per image, for its t, ε
        and corruption.
        For "full", a_i is ∂LD_i/∂p_i. For "sds" it is the mean over draws of w(t)/n · ⟨ε_φ − ε, ∂z_t/∂p_i⟩, where a
        latent has n elements.
        """

        def run(part: slice) -> tuple[Tensor, Tensor]:
            return self._micro_batch(images[part], labels[part], confidence[part], seeds[part])

        if self.micro_batch is None and len(images) > 1:
            self.micro_batch = items_that_fit(lambda: in_micro_batches(run, 1, 1), self.ldm.device)
        parts, self.micro_batch = in_micro_batches(run, len(images), self.micro_batch)
        if self.gradient_mode == "auto" and self.ldm.device.type in TIMED_DEVICES:
            self._choose_gradient_mode(run, min(self.micro_batch or len(images), len(images)))
        values, slopes = zip(*parts)
        return torch.cat(values), torch.cat(slopes)

    def _choose_gradient_mode(self, run: Callable[[slice], object], size: int) -> None:
        """Time both modes on a micro-batch of this size and set `gradient_mode` for all later calls."""

        def seconds() -> float:
            with Stopwatch(self.ldm.device) as watch:
                run(slice(0, size))
            return watch.seconds

        forward = seconds()  # without a warm-up: `coefficients` has just run in forward mode
        self.gradient_mode, reverse = "reverse", float("inf")
        try:
            run(slice(0, size))  # the warm-up: a first run is slower
            reverse = seconds()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if reverse >= REVERSE_TIME_LIMIT * forward:
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
        """(LD_i, a_i) by dual numbers. For "sds" the U-Net gets the primal only."""
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
        """(LD_i, a_i) by torch's autograd. For "sds" only the encoder is differentiated."""
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

    def _encoded(self, images: TensorOrDual) -> TensorOrDual:
        """z (B, C, h, w)."""
        return self.ldm.encode(images).to(self._precision)

    def _draw(self, latents: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """t (T, B) and ε (T, B, C, h, w) from one seed per image, drawn on the CPU so that devices agree."""
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

    def _residual(self, latents: TensorOrDual, t: Tensor, noise: Tensor, embeddings: Tensor) -> TensorOrDual:
        """ε_φ(z_t, t, c) − ε of one draw, (B, C, h, w): Algorithm 2, line 5 and the inside of line 6."""
        alphas = self._alphas_cumprod[t][:, None, None, None]
        noised: Any = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        return self.ldm.predict_noise(noised, t, embeddings).to(self._precision) - noise

    def noise_residual(self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]) -> Tensor:
        """ε_φ − ε, the mean over the draws, (B, C, h, w); arguments as for `coefficients`."""
        return self.noise_residuals(images, labels, confidence, seeds)[0].mean(0)

    @torch.no_grad()
    def noise_residuals(
        self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int]
    ) -> tuple[Tensor, Tensor]:
        """(ε_φ − ε of every draw (T, B, C, h, w), LD_i (B,)), without a gradient; arguments as for `coefficients`.

        The LD noise images of the supplement's Figs. 2 to 4 are drawn from these residuals.
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
