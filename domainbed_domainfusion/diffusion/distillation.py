"""Latent Distillation (LD), Algorithm 2: what the frozen LDM says about a classifier's confidence.

LD depends on the classifier θ only through p, its confidence in the true class: one number per image. The gradient of
LD is therefore Σ_i a_i ∇p_i with one number a_i = ∂LD_i/∂p_i per image. The surrogate Σ_i stopgrad(a_i) p_i has the
same gradient, and needs no graph that joins classifier and LDM.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..seeding import generator_of
from ..stopwatch import Stopwatch
from .corruption import corrupt
from .draws import Draws
from .dual import TensorOrDual
from .forward_mode import Dual, UnsupportedOperation
from .memory import items_that_fit
from .micro_batches import in_micro_batches, is_out_of_memory
from .model import LatentDiffusion
from .prompted import PromptedModel
from .prompts import Prompts
from .tiny_encoder import TinyEncoder

WEIGHTINGS = ("uniform", "one_minus_alpha_bar", "snr")
GRADIENTS = ("sds", "full", "guidance")
REDUCTIONS = ("mean", "sum")
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
    """LD_i = (1/T) Σ_draws w(t) · R((ε̂ − ε)²) with z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, z = encode(x'(p)).

    ε̂ = ε_φ(z_t, t, c_y), or with a guidance scale s the guided ε_u + s (ε_c − ε_u), where ε_c is predicted under the
    class's prompt and ε_u under the empty one. R is the mean or the sum over a latent's n elements. The paper leaves w,
    T, the distribution of t, the guidance and R open; every reading is offered.

    The gradient a_i has three forms:
        full      ∂LD_i/∂p_i, through the U-Net (the supplement's listing)
        sds       (1/T) Σ w(t) · R((ε̂ − ε) ∂z_t/∂p_i): score distillation, without the U-Net's Jacobian
        guidance  (1/T) Σ w(t) · R(s (ε_c − ε_u) ∂z_t/∂p_i): the part of guided sds that knows the class (ours)
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
        guidance_scale: float = 1.0,
        reduction: str = "mean",
        timesteps: tuple[float, float] = (0.0, 1.0),
        next_class: bool = False,
        antithetic: bool = False,
        encoder: LatentDiffusion | TinyEncoder | None = None,
    ) -> None:
        """Raises ValueError for an unknown weighting, gradient, gradient_mode or reduction, and for no timestep. Raises
        InputError for draws that are not pairs with `antithetic`, and for "guidance" with a latent consistency model.

        draws: T. antithetic: they are pairs with the same t, one with ε and one with −ε.
        weighting: w(t) = 1, 1 − ᾱ_t, or ᾱ_t / (1 − ᾱ_t) for "snr". gradient: see the class.
        guidance_scale: s; at 1 the class's prompt alone is asked, in half the U-Net evaluations. A latent consistency
        model takes it as a condition of its U-Net. reduction: R. timesteps: lowest and highest t as shares of the
        schedule; t is uniform between them.
        encoder: what makes z of x'; None is the LDM's own VAE.
        next_class: a control: each image is asked under the prompt of the class after its own.
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
            ("reduction", reduction, REDUCTIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
        self.ldm, self.prompts, self.draws, self.gradient_mode = ldm, prompts, draws, gradient_mode
        self.gradient, self.corruption, self.micro_batch = gradient, corruption, micro_batch
        self.guidance_scale, self.reduction, self.next_class = guidance_scale, reduction, next_class
        self.antithetic, self.encoder = antithetic, encoder or ldm
        if antithetic and draws % 2:
            raise InputError(f"ld_antithetic makes pairs of draws, and ld_draws is {draws}: give an even number.")
        self.first_timestep = math.floor(timesteps[0] * ldm.num_train_timesteps)
        self.end_timestep = math.ceil(timesteps[1] * ldm.num_train_timesteps)  # excluded
        if not 0 <= self.first_timestep < self.end_timestep <= ldm.num_train_timesteps:
            raise ValueError(f"timesteps {timesteps} must be two rising shares of the schedule, from 0 to 1")
        if gradient == "guidance" and ldm.embeds_guidance:
            raise InputError(
                'The hparam ld_gradient "guidance" compares predictions with and without the prompt, and a latent '
                'consistency model makes only one: use "sds" or "full".'
            )
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
        """Latent Distillation as a run's hparams describe it.

        Raises InputError for an `ld_encoder` that does not fit the LDM.
        """
        return cls(
            model.ldm,
            model.prompts,
            draws=hparams["ld_draws"],
            weighting=hparams["ld_weighting"],
            gradient=hparams["ld_gradient"],
            corruption=hparams["ld_corruption"],
            micro_batch=hparams["ld_batch"] or None,
            gradient_mode=hparams["ld_gradient_mode"],
            guidance_scale=hparams["ld_guidance_scale"],
            reduction=hparams["ld_reduction"],
            timesteps=tuple(hparams["ld_timesteps"]),
            next_class=hparams["ld_prompts"] == "next_class",
            antithetic=hparams["ld_antithetic"],
            encoder=model.ldm.tiny_encoder(hparams["ld_encoder"]) if hparams["ld_encoder"] else None,
        )

    def coefficients(
        self, images: Tensor, labels: Tensor, confidence: Tensor, seeds: list[int], stratified: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(LD_i, a_i), each (B,), without a graph; `surrogate` turns them into a loss.

        images (B, 3, S, S) in [-1, 1]; labels (B,); confidence p (B,) in [0, 1]; seeds: one per image, for its t, ε
        and corruption. stratified: t of draw d of image i lies in stratum d · B + i of B · T equal parts of the range
        of t, so that a minibatch covers the range evenly; a_i then depends on i and B too. A pair counts as one draw.
        """
        strata = [(i, len(images)) for i in range(len(images))] if stratified else [None] * len(images)

        def run(part: slice) -> tuple[Tensor, Tensor]:
            draws = [Draws(seed, stratum) for seed, stratum in zip(seeds[part], strata[part])]
            return self._micro_batch(images[part], labels[part], confidence[part], draws)

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
        self, images: Tensor, labels: Tensor, confidence: Tensor, draws: list[Draws]
    ) -> tuple[Tensor, Tensor]:
        images = images.to(self.ldm.device, self._precision)
        p = confidence.detach().to(self.ldm.device, self._precision)
        embeddings = self._embeddings(labels)
        if self.gradient_mode == "reverse":
            return self._reverse(images, embeddings, p, draws)
        try:
            return self._forward(images, embeddings, p, draws)
        except UnsupportedOperation as error:
            if self.gradient_mode == "forward":
                raise InputError(str(error)) from error
            warnings.warn(f"{error} LD goes on in reverse mode.", stacklevel=2)
            self.gradient_mode = "reverse"
            return self._reverse(images, embeddings, p, draws)

    @torch.no_grad()
    def _forward(self, images: Tensor, embeddings: Tensor, p: Tensor, draws: list[Draws]) -> tuple[Tensor, Tensor]:
        """(LD_i, a_i) by dual numbers. Only "full" gives the U-Net a tangent."""
        corrupted = torch.autograd.functional.jvp(lambda q: self._corrupted(images, q, draws), p, torch.ones_like(p))
        latents = self._encoded(Dual(*corrupted))
        t, noise = self._draw(latents.primal, draws)
        value, slope = torch.zeros_like(p), torch.zeros_like(p)
        for draw in range(self.draws):
            weight = self._weights[t[draw]] / self.draws
            if self.gradient == "full":
                residual, _ = self._residual(latents, t[draw], noise[draw], embeddings)
                primal, along, tangent = residual.primal, residual.primal, 2 * residual.tangent
            else:
                primal, along = self._residual(latents.primal, t[draw], noise[draw], embeddings)
                tangent = self._alphas_cumprod[t[draw]].sqrt()[:, None, None, None] * latents.tangent
            value += weight * self._reduced(primal.square())
            slope += weight * self._reduced(along * tangent)
        return value, slope

    @torch.enable_grad()
    def _reverse(self, images: Tensor, embeddings: Tensor, p: Tensor, draws: list[Draws]) -> tuple[Tensor, Tensor]:
        """(LD_i, a_i) by torch's autograd. Only "full" differentiates the U-Net."""
        p.requires_grad_()
        latents = self._encoded(self._corrupted(images, p, draws))
        t, noise = self._draw(latents, draws)
        value, target = torch.zeros_like(p), torch.zeros_like(p)
        for draw in range(self.draws):
            weight = self._weights[t[draw]] / self.draws
            with torch.set_grad_enabled(self.gradient == "full"):
                residual, along = self._residual(latents, t[draw], noise[draw], embeddings)
                value = value + weight * self._reduced(residual.square())
            target = target + weight * self._alphas_cumprod[t[draw]].sqrt() * self._reduced(along.detach() * latents)
        target = value if self.gradient == "full" else target
        if not target.requires_grad:  # the corruption "none" does not depend on p
            return value, torch.zeros_like(p)
        (slope,) = torch.autograd.grad(target.sum(), p)
        return value.detach(), slope

    def _embeddings(self, labels: Tensor) -> Tensor:
        """The prompt of each label's class, (B, L, D); with `next_class` that of the class after it, cyclically."""
        return self.prompts.matched((labels + self.next_class) % len(self.prompts.texts))

    def _reduced(self, x: Tensor) -> Tensor:
        """R over the elements of each image: (B, C, h, w) -> (B,)."""
        elements = x.flatten(1)
        return elements.mean(1) if self.reduction == "mean" else elements.sum(1)

    def _corrupted(self, images: Tensor, p: Tensor, draws: list[Draws]) -> Tensor:
        """x' (B, 3, S, S): Algorithm 2, line 1."""
        return corrupt(images, p, self.corruption, [generator_of(each.seed, "corruption") for each in draws])

    def _encoded(self, images: TensorOrDual) -> TensorOrDual:
        """z (B, C, h, w)."""
        return self.encoder.encode(images).to(self._precision)

    def _draw(self, latents: Tensor, draws: list[Draws]) -> tuple[Tensor, Tensor]:
        """t (T, B) and ε (T, B, C, h, w) from one seed per image, drawn on the CPU so that devices agree."""
        drawn, signs = [], (1, -1) if self.antithetic else (1,)
        for each in draws:
            generator = torch.Generator().manual_seed(each.seed)
            for draw in range(count := self.draws // len(signs)):
                t = each.timestep(self.first_timestep, self.end_timestep, draw, count, generator)
                noise = torch.randn(latents.shape[1:], generator=generator)
                drawn += [(t, sign * noise) for sign in signs]
        shape = (len(draws), self.draws)
        t, noises = (torch.stack(items).unflatten(0, shape).transpose(0, 1) for items in zip(*drawn))
        return t.to(latents.device), noises.to(latents)

    def _residual(self, latents: TensorOrDual, t: Tensor, noise: Tensor, embeddings: Tensor) -> tuple[Any, Any]:
        """(ε̂ − ε, what multiplies ∂z_t/∂p in a_i) of one draw, (B, C, h, w) each: Algorithm 2, lines 5 and 6.

        The second is s (ε_c − ε_u) for "guidance" and ε̂ − ε otherwise. Both predictions are made in one batch.
        """
        alphas = self._alphas_cumprod[t][:, None, None, None]
        noised: Any = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        scale = self.guidance_scale
        if self.ldm.embeds_guidance or (scale == 1 and self.gradient != "guidance"):
            residual = self.ldm.predict_noise(noised, t, embeddings, scale).to(self._precision) - noise
            return residual, residual
        both = torch.cat([self.prompts.unconditional.expand_as(embeddings), embeddings])
        predicted = self.ldm.predict_noise(torch.cat([noised, noised]), torch.cat([t, t]), both).to(self._precision)
        unconditional, conditional = predicted.chunk(2)
        guidance = (conditional - unconditional) * scale
        residual = unconditional + guidance - noise
        return residual, guidance if self.gradient == "guidance" else residual

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
        draws = [Draws(seed) for seed in seeds]
        p = confidence.to(self.ldm.device, self._precision)
        latents = self._encoded(self._corrupted(images.to(self.ldm.device, self._precision), p, draws))
        t, noise = self._draw(latents, draws)
        embeddings = self._embeddings(labels)
        residuals = torch.stack(
            [self._residual(latents, t[draw], noise[draw], embeddings)[0] for draw in range(self.draws)]
        )
        squares = residuals.square().flatten(2)
        values = squares.mean(2) if self.reduction == "mean" else squares.sum(2)
        return residuals, (self._weights[t] * values).mean(0)
