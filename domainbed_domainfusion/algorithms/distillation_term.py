"""Latent Distillation as a term of DomainFusion's loss: which images it sees, when, and what a row says of it."""

from typing import Any

import torch
from torch import Tensor

from ..diffusion.distillation import LatentDistillation, surrogate
from ..errors import InputError
from ..generated.dataset import GenerateDataset
from ..generated.generation import Judge
from ..pixels import PixelRange, from_store
from ..seeding import generator_of, seed_of

#: This share of its images may have an LD that is not finite before the run is stopped.
NOT_FINITE_SHARE = 0.1
NOT_FINITE_AT_LEAST = 8  # images; fewer never stop a run
#: Images of a round that share their strata of timesteps. Fixed, so that no hparam of speed changes a coefficient.
IMAGES_AT_ONCE = 64

Term = tuple[Tensor, dict[str, float]]  # a scalar with the gradient Σ a_i ∇p_i / B, and values for the results row


class DistillationTerm:
    """Algorithm 2 in a run.

    With the hparam ld_when "step" every step's minibatch gets coefficients of its own (`of_minibatch`). With
    "generation" each image gets one coefficient when it is generated (`of_round`), as the listing has LD inside the
    generation loop, and keeps it until it is generated again (`of_generated`); that its p is then an older one is ours.

    Args:
        distillation: computes LD_i and a_i.
        hparams: image_size, ld_images, ld_stratified.
        pixel_range: the classifier's pixel range.
        run_seed: with the step and the image, or with the image and the round, it seeds t, ε and the corruption.
    """

    def __init__(
        self, distillation: LatentDistillation, hparams: dict[str, Any], pixel_range: PixelRange, run_seed: int
    ):
        self.distillation, self.hparams, self.pixel_range = distillation, hparams, pixel_range
        self.run_seed = run_seed
        self._seen = self._not_finite = 0  # images, over the whole run
        self._round_values = self._round_slopes = torch.zeros(0)  # by row of the generate-dataset

    def of_minibatch(self, x: Tensor, y: Tensor, confidence: Tensor, step: int) -> Term:
        """LD of a minibatch, or of `ld_images` of it. x: (B, C, H, W); y: (B,); confidence: p (B,) with its graph."""
        n = self.hparams["ld_images"] or len(x)
        order = torch.randperm(len(x), generator=generator_of(self.run_seed, "ld images", step))
        seen = order[:n].to(x.device)
        images = self.pixel_range.to_diffusion(x[seen], self.hparams["image_size"])
        seeds = [seed_of(self.run_seed, "ld", step, i) for i in range(len(seen))]
        p = confidence[seen]
        value, a = self._coefficients(images, y[seen], p.detach(), seeds)
        return self._term(value, a, p, confidence, step)

    def of_round(self, dataset: GenerateDataset, judge: Judge, step: int) -> None:
        """Compute LD_i and a_i of every image that the last round has made. Call it with θ in eval mode."""
        values, slopes = torch.zeros(2, len(dataset.keys))
        for start in range(0, len(dataset.keys), IMAGES_AT_ONCE):
            rows = range(start, min(start + IMAGES_AT_ONCE, len(dataset.keys)))
            images, labels = dataset.versions(rows)
            x, keys = from_store(images), [dataset.keys[row] for row in rows]
            seeds = [
                seed_of(self.run_seed, "ld", dataset.in_splits[split].environment, index, dataset.rounds)
                for split, index in keys
            ]
            value, a = self._coefficients(x, labels, judge.confidence_in(x, labels), seeds)
            values[start : rows.stop], slopes[start : rows.stop] = value.cpu(), a.cpu()
        self._round_values, self._round_slopes = values, slopes
        finite = values.isfinite() & slopes.isfinite()
        self._count(len(finite), len(finite) - int(finite.sum()), step)

    def of_generated(self, rows: Tensor, confidence: Tensor) -> Term:
        """LD of a generated minibatch by the coefficients of its images' round; nothing before the first round.

        rows: (B,) of the generate-dataset; confidence: p (B,) with its graph.
        """
        if not len(self._round_values):
            return without_distillation(confidence)
        value, a = (each[rows.cpu()].to(confidence) for each in (self._round_values, self._round_slopes))
        return self._term(value, a, confidence, confidence, step=None)

    def resume_state(self) -> dict[str, Any]:
        """Plain data from which `load_resume_state` continues: the round's coefficients and the counts of images."""
        return {
            "values": self._round_values,
            "slopes": self._round_slopes,
            "seen": self._seen,
            "not_finite": self._not_finite,
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        self._round_values, self._round_slopes = state["values"], state["slopes"]
        self._seen, self._not_finite = state["seen"], state["not_finite"]

    def _coefficients(self, images: Tensor, labels: Tensor, p: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        return self.distillation.coefficients(images, labels, p, seeds, self.hparams["ld_stratified"])

    def _term(self, value: Tensor, a: Tensor, p: Tensor, confidence: Tensor, step: int | None) -> Term:
        """Images whose LD_i or a_i is not finite are left out; they are counted unless their round has done so."""
        finite = value.isfinite() & a.isfinite()
        not_finite = len(finite) - int(finite.sum())
        if step is not None:
            self._count(len(finite), not_finite, step)
        if not_finite:
            value, a, p = value[finite], a[finite], p[finite.to(p.device)]
        if not len(p):
            return without_distillation(confidence, not_finite)
        return surrogate(value, a, p), _values(confidence, value, a, p.detach().to(a), not_finite)

    def _count(self, images: int, not_finite: int, step: int) -> None:
        """Count the images whose LD is not finite; print a line at the first. Raises InputError at too many."""
        if not_finite and not self._not_finite:
            print(
                f"At step {step} Latent Distillation is not finite for {not_finite} of {images} images: they are "
                "left out of its loss, here and later; ld_not_finite in the results counts them."
            )
        self._seen += images
        self._not_finite += not_finite
        if self._not_finite > max(NOT_FINITE_AT_LEAST, NOT_FINITE_SHARE * self._seen):
            dtype = str(self.distillation.ldm.dtype).removeprefix("torch.")
            raise InputError(
                f"Latent Distillation is not finite for {self._not_finite} of {self._seen} images in {dtype}: "
                'set the hparam ldm_dtype to "bfloat16" or "float32".'
            )


def without_distillation(confidence: Tensor, not_finite: int = 0) -> Term:
    """The term of a step without LD. confidence: (B,) in [0, 1]."""
    zero = confidence.new_zeros(1)
    return confidence.new_zeros(()), _values(confidence, zero, zero, zero, not_finite)


def gradient_ratio(ld: Tensor, cross_entropy: Tensor, logits: Tensor, logits_gen: Tensor) -> float:
    """‖∇LD‖ / ‖∇CE‖ with respect to the logits of a step, each loss with its weight; 0 without LD.

    Both losses reach θ through these logits only, and their gradients cost nothing there.
    """
    if not ld.requires_grad:
        return 0.0
    at = [logits] if logits_gen is logits else [logits, logits_gen]

    def norm(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
        return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()

    return (norm(ld) / norm(cross_entropy).clamp_min(torch.finfo(ld.dtype).tiny)).item()


def _values(confidence: Tensor, value: Tensor, a: Tensor, p: Tensor, not_finite: int) -> dict[str, float]:
    """What a results row says of LD; the host averages each number over the steps since the last row.

    ld_coefficient = ld_coefficient_below + ld_coefficient_above: the parts that images with p below and from 0.5 on
    contribute. Divided by ld_share_below and its rest they are the mean a of each group, over any number of steps.
    """
    below = (p < 0.5).to(a)
    return {
        "ld_loss": value.mean().item(),
        "ld_coefficient": a.mean().item(),
        "ld_coefficient_below": (a * below).mean().item(),
        "ld_coefficient_above": (a * (1 - below)).mean().item(),
        "ld_share_below": below.mean().item(),
        "ld_share_negative": (a < 0).float().mean().item(),
        "ld_not_finite": float(not_finite),
        "confidence": confidence.mean().item(),
    }
