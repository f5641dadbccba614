"""Algorithm 1, lines 7 to 12, for a minibatch: candidates, the choice of content and of style, and x_gen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import style
from ..errors import InputError
from ..pixels import PixelRange

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.candidates import Candidates, CandidateSampler
    from .candidate_cache import CandidateCache
    from .dataset import Batch
    from .device_pool import DevicePool


@dataclass(frozen=True)
class Generated:
    """A minibatch of x_gen, the result of line 12, and the two choices behind it."""

    images: Tensor  # (B, 3, S, S) in [-1, 1]
    content: Tensor  # (B,) index of the candidate that gave the content, line 10
    style: Tensor  # (B,) index of the candidate that gave the style, line 11


class Judge:
    """The classifier θ of line 10, applied to images in φ's range. θ must be in eval mode.

    featurizer: (B, C, H, W) → (B, F). classifier: (B, F) → logits (B, classes). pixel_range: of the featurizer's input.
    """

    def __init__(self, featurizer: nn.Module, classifier: nn.Module, pixel_range: PixelRange):
        self.featurizer, self.classifier, self.pixel_range = featurizer, classifier, pixel_range

    @classmethod
    def of(cls, algorithm: Any, pixel_range: PixelRange) -> "Judge":
        """θ of an algorithm of the host. Raises InputError unless it has a featurizer and a classifier, as ERM has."""
        if not (hasattr(algorithm, "featurizer") and hasattr(algorithm, "classifier")):
            raise InputError(
                f"{type(algorithm).__name__} cannot judge candidates, because it has no featurizer with a classifier "
                "on top: give a model of an algorithm that has both, such as ERM."
            )
        return cls(algorithm.featurizer, algorithm.classifier, pixel_range)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (B, F) of images (B, 3, S, S) in [-1, 1]."""
        return self.featurizer(self.pixel_range.to_classifier(images))

    def confidence(self, features: Tensor, labels: Tensor) -> Tensor:
        """p, the softmax probability of the true class, (B,) in [0, 1], from features (B, F) and labels (B,)."""
        return self.classifier(features).softmax(-1).gather(1, labels[:, None])[:, 0]

    @torch.no_grad()
    def confidence_in(self, images: Tensor, labels: Tensor) -> Tensor:
        """p of images (B, 3, S, S) in [-1, 1] with labels (B,): (B,) in [0, 1], on the CPU."""
        device = next(self.classifier.parameters()).device
        return self.confidence(self.features(images.to(device)), labels.to(device)).cpu()


class Generation:
    """Lines 7 to 12. It consists of φ (the sampler), θ (the judge), the hparams of choice and style, and a cache.

    Args:
        sampler: generates the candidates, line 7.
        judge: θ, or None if there is no classifier. Without a classifier, content is chosen by its similarity to the
            original alone. This needs content_weight 1 and content_feature "content".
        hparams: candidates, sampling_strategy, content_weight, content_feature, style_space, style_divergence,
            early_choice.
        cache: holds candidates with seeds that runs share, or None.
        pool: makes the candidates on several devices in the sampler's place, or None. What the cache lacks is made by
            the sampler.

    Raises InputError if the hparams need a judge and there is none, and for early_choice where it cannot be made.
    """

    def __init__(
        self,
        sampler: "CandidateSampler",
        judge: Judge | None,
        hparams: dict[str, Any],
        cache: "CandidateCache | None" = None,
        pool: "DevicePool | None" = None,
    ):
        self.sampler, self.judge, self.hparams, self.cache, self.pool = sampler, judge, hparams, cache, pool
        needs_judge = hparams["content_weight"] != 1 or hparams["content_feature"] != "content"
        if judge is None and hparams["sampling_strategy"] and needs_judge:
            raise InputError(
                'Without a classifier the hparam content_weight must be 1 and content_feature "content": '
                "set them, or give a classifier."
            )
        self.early: int | None = hparams["early_choice"] if hparams["sampling_strategy"] else None
        if self.early is not None:
            sampler.check_early(self.early)
            if cache is not None or pool is not None:
                other = "candidate_cache" if cache is not None else "generation_devices"
                raise InputError(f"early_choice finishes few candidates, but {other} needs all: set one to null.")

    @property
    def candidates(self) -> int:
        """Candidates per image: N_c, or one without the sampling strategy."""
        return self.hparams["candidates"] if self.hparams["sampling_strategy"] else 1

    @property
    def prompts(self) -> list[str]:
        """The prompt of each class, in label order."""
        return self.sampler.prompts.texts

    def ahead(self, batches: "Iterator[Batch]", shared: bool) -> None:
        """Say with which batches, in which order, `__call__` will be called, so that several devices can begin.

        batches: (x, y, seeds) of each, as in `__call__`. Without a pool nothing is done.
        """
        if self.pool is not None and not (shared and self.cache is not None):
            self.pool.ahead(batches)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, seeds: list[list[int]], shared: bool = False) -> Generated:
        """Generate from x: (B, 3, S, S) in [-1, 1], y: (B,), seeds: (B × candidates).

        shared: whether runs share these seeds. Only then is the cache used.
        """
        device = self.sampler.ldm.device
        x, y = x.to(device), y.to(device)
        if self.early is not None:
            return self._with_early_choice(x, y, seeds, self.early)
        source = self.cache if shared and self.cache is not None else self.pool or self.sampler
        candidates = source.sample(x, y, seeds)  # line 7
        if not self.hparams["sampling_strategy"]:
            first = torch.zeros(len(x), dtype=torch.long)
            return Generated(candidates.images[:, 0], first, first)

        mu, sigma, content = self._decomposed(candidates)  # line 9
        c, s = self._choices(x, y, candidates.images, mu, sigma, content)  # lines 8, 10 and 11
        i = torch.arange(len(x), device=device)
        return Generated(self._combined(mu[i, s], sigma[i, s], content[i, c]), c.cpu(), s.cpu())  # line 12

    def _decomposed(self, candidates: "Candidates") -> tuple[Tensor, Tensor, Tensor]:
        """Style μ and σ (B, N, C) and content of the candidates: line 9."""
        return style.decompose(candidates.latents if self.hparams["style_space"] == "latent" else candidates.images)

    def _choices(
        self, x: Tensor, y: Tensor, images: Tensor, mu: Tensor, sigma: Tensor, content: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The candidates that give content and style, (B,) each: lines 8, 10 and 11. images: the candidates'."""
        original = self.sampler.ldm.encode(x) if self.hparams["style_space"] == "latent" else x
        mu0, sigma0, content0 = style.decompose(original)  # line 8
        similarity, confidence = self._content_scores(x, content0, images, content, y)
        divergence = style.style_divergence(mu0, sigma0, mu, sigma, self.hparams["style_divergence"])
        c = style.choose_content(similarity, confidence, self.hparams["content_weight"])  # line 10
        return c, style.choose_style(divergence)  # line 11

    def _combined(self, mu: Tensor, sigma: Tensor, content: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] of the chosen styles (B, C) and contents (B, C, ·, ·): line 12."""
        x_gen = style.adain(mu, sigma, content)
        return self.sampler.ldm.decode(x_gen) if self.hparams["style_space"] == "latent" else x_gen.clamp(-1, 1)

    def _with_early_choice(self, x: Tensor, y: Tensor, seeds: list[list[int]], steps: int) -> Generated:
        """As `__call__`, but content and style are chosen among previews after so many steps (ours).

        A preview is the image of the clean latents that the U-Net predicts there. Only the chosen candidates are
        finished, and line 12 takes them as they are then.
        """
        begun = self.sampler.begin(x, y, seeds, steps)
        B, N = len(x), len(seeds[0])
        previews = self.sampler.decode(begun.previews.unflatten(0, (B, N)))
        c, s = self._choices(x, y, previews.images, *self._decomposed(previews))
        first = N * torch.arange(B, device=c.device)
        rows, places = torch.cat([first + c, first + s]).unique(return_inverse=True)
        finished = self.sampler.decode(self.sampler.finish(begun, rows)[:, None])
        mu, sigma, content = (part[:, 0] for part in self._decomposed(finished))
        of_content, of_style = places.split(B)
        return Generated(self._combined(mu[of_style], sigma[of_style], content[of_content]), c.cpu(), s.cpu())

    def _content_scores(
        self, x: Tensor, content0: Tensor, images: Tensor, content: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two terms of line 10: cos(feature(c0), feature(cj)) and confidence(cj, y), both (B, N)."""
        B, N = images.shape[:2]
        features0, features, confidence = content0, content, images.new_zeros(B, N)
        if self.judge is not None:
            candidate_features = self.judge.features(images.flatten(0, 1))
            confidence = self.judge.confidence(candidate_features, y.repeat_interleave(N)).view(B, N)
            if self.hparams["content_feature"] == "classifier":
                features0, features = self.judge.features(x), candidate_features
        return F.cosine_similarity(features0.reshape(B, 1, -1), features.reshape(B, N, -1), dim=-1), confidence
