"""Zero-shot classification with the frozen LDM: the class whose prompt predicts an image's noise best.

    e(x, y, t, ε) = mean((ε − ε_φ(z_t, t, c_y))²),   z_t = √ᾱ_t z + √(1 − ᾱ_t) ε,   z = encode(x), no guidance

Every class of an image is scored with the same (t, ε). Both methods return (B, K) float64 scores on the CPU; higher is
better. A score is minus the class's mean error so far. Eliminated classes score below all surviving ones.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

from ..seeding import generator_of
from .micro_batches import in_micro_batches
from .model import LatentDiffusion
from .prompts import Prompts

#: e of P pairs (image, class) at D draws: (P,) images, (P,) classes, (B, D) t, (B, D, C, h, w) ε -> (P, D) float64.
Errors = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class NoiseErrors:
    """e(x, y, t, ε) for pairs of an image of one batch and a class, computed in micro-batches.

    `latents` (B, C, h, w) are the encoded images; `evaluations` counts the rows that the U-Net has processed.
    """

    def __init__(self, ldm: LatentDiffusion, prompts: Prompts, images: Tensor, micro_batch: int) -> None:
        """images: (B, 3, S, S) in [-1, 1]; micro_batch: images to encode, or (pair, draw)s to score, at once.

        If the memory does not suffice, micro_batch is halved.
        """
        self.ldm, self.prompts = ldm, prompts
        self.micro_batch: int | None = micro_batch
        self._precision = torch.promote_types(ldm.dtype, torch.float32)
        self._alphas_cumprod = ldm.alphas_cumprod.to(self._precision)
        with torch.no_grad():
            parts, _ = in_micro_batches(lambda part: ldm.encode(images[part]), len(images), micro_batch)
        self.latents = torch.cat(parts).to(self._precision)
        self.evaluations = 0

    @torch.no_grad()
    def __call__(self, image: Tensor, label: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """(P, D) float64 on the CPU; see `Errors`."""
        draws = t.shape[1]
        image, label, t = (part.to(self.ldm.device) for part in (image, label, t))
        noise = noise.to(self.latents)

        def run(part: slice) -> Tensor:
            flat = torch.arange(part.start, part.stop, device=self.ldm.device)
            pair, draw = flat // draws, flat % draws
            i = image[pair]
            alphas = self._alphas_cumprod[t[i, draw]][:, None, None, None]
            noised = alphas.sqrt() * self.latents[i] + (1 - alphas).sqrt() * noise[i, draw]
            predicted = self.ldm.predict_noise(noised, t[i, draw], self.prompts.matched(label[pair]))
            return (noise[i, draw] - predicted.to(self._precision)).square().flatten(1).mean(1)

        count = len(image) * draws
        parts, self.micro_batch = in_micro_batches(run, count, self.micro_batch)
        self.evaluations += count
        return torch.cat(parts).double().cpu().view(len(image), draws)


def stage_timesteps(stages: Sequence[Sequence[int]], num_train_timesteps: int = 1000) -> list[list[int]]:
    """The timesteps that each stage [timesteps in all, classes that go on] adds to the earlier stages' timesteps.

    As in Li et al.'s code: the timesteps of the last stage are evenly spaced in [0, T). Each earlier stage takes an
    evenly spaced subset of them.
    """
    most = max(count for count, _ in stages)
    step = num_train_timesteps // most
    grid = [step // 2 + step * i for i in range(most)]
    seen: set[int] = set()
    added = []
    for count, _ in stages:
        stride = most // count
        new = [t for t in grid[stride // 2 :: stride][:count] if t not in seen]
        seen.update(new)
        added.append(new)
    return added


def staged_elimination(
    errors: Errors,
    shape: torch.Size,
    seeds: Sequence[int],
    classes: int,
    stages: Sequence[Sequence[int]],
    num_train_timesteps: int = 1000,
) -> Tensor:
    """Diffusion Classifier (Li et al., ICCV 2023): mean error over evenly spaced timesteps, in stages.

    shape: (C, h, w) of a latent; seeds: one per image, from which one ε per timestep is drawn; stages: [timesteps in
    all, classes that go on], with rising timesteps. Returns scores (B, classes).
    """
    B = len(seeds)
    alive = torch.arange(classes).expand(B, classes)  # (B, surviving classes): their indices
    total = torch.zeros(B, classes, dtype=torch.float64)
    count = torch.zeros_like(total)
    for new, (_, keep) in zip(stage_timesteps(stages, num_train_timesteps), stages):
        if new:
            t = torch.tensor(new).expand(B, -1)
            noise = torch.stack(
                [
                    torch.stack([torch.randn(shape, generator=generator_of(seed, step)) for step in new])
                    for seed in seeds
                ]
            )
            image = torch.arange(B).repeat_interleave(alive.shape[1])
            sums = errors(image, alive.flatten(), t, noise).sum(1).view(alive.shape)
            total = total.scatter_add(1, alive, sums)
            count = count.scatter_add(1, alive, torch.full_like(sums, len(new)))
        order = (total / count).gather(1, alive).argsort(dim=1, stable=True)
        alive = alive.gather(1, order[:, :keep])
    survived = torch.zeros(B, classes, dtype=torch.bool).scatter(1, alive, True)
    return _scores(total / count, survived)


def x0_weights(alphas_cumprod: Tensor) -> Tensor:
    """The factor from an ε-error to Clark & Jaini's weighted x0-error: exp(−7t/T) (1 − ᾱ_t)/ᾱ_t, (T,) -> (T,) float64.

    x − x0(z_t, ε_φ) = √((1 − ᾱ)/ᾱ) (ε_φ − ε) gives (1 − ᾱ)/ᾱ; exp(−7t) with t in [0, 1] is their heuristic weight.
    """
    alphas = alphas_cumprod.double().cpu()
    return torch.exp(-7 * torch.arange(len(alphas), dtype=torch.float64) / len(alphas)) * (1 - alphas) / alphas


def paired_t_test(difference: np.ndarray) -> np.ndarray:
    """Two-sided p-value of the paired t-test, from the differences (…, n) of paired scores; nan where all are zero."""
    n = difference.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference.mean(-1) / (difference.std(-1, ddof=1) / np.sqrt(n))
    return 2 * stdtr(n - 1, -np.abs(t))


class PairedTestPruning:
    """Text-to-image classifier (Clark & Jaini, NeurIPS 2023, their Algorithm 1).

    Each draw (t uniform, ε) scores every remaining class by its weighted x0-error. From `min_scores` draws on, a class
    is removed if its scores differ from those of the present best with p < `cutoff` (paired Student's t-test). An image
    is done when one class is left, or after `max_scores` draws. Draws are scored in groups to fill a micro-batch, but
    tested one by one. The size of the groups therefore does not change the result.
    """

    def __init__(self, min_scores: int, max_scores: int, cutoff: float, weights: Tensor) -> None:
        """min_scores: at least 2, and more than max_scores for no pruning; cutoff: in [0, 1]; weights: (T,), see
        `x0_weights`.
        """
        self.min_scores, self.max_scores, self.cutoff, self.weights = min_scores, max_scores, cutoff, weights

    def __call__(self, errors: Errors, shape: torch.Size, seeds: Sequence[int], classes: int, group: int = 1) -> Tensor:
        """Scores (B, classes). shape: (C, h, w) of a latent; seeds: one per image; group: (t, ε, class)s per call."""
        B = len(seeds)
        scored = torch.zeros(B, classes, self.max_scores, dtype=torch.float64)
        count = torch.zeros(B, classes, dtype=torch.long)  # the number of scores of each class when it was removed
        alive = torch.ones(B, classes, dtype=torch.bool)
        done = 0
        while done < self.max_scores:
            racing = (alive.sum(1) > 1).nonzero()[:, 0]
            if not len(racing):
                break
            row, label = alive[racing].nonzero(as_tuple=True)
            image = racing[row]
            n = max(self.min_scores - done, group // len(image), 1)
            n = min(n, self.max_scores - done)
            t, noise = self._draw(seeds, racing, range(done, done + n), shape)
            scored[image, label, done : done + n] = errors(image, label, t, noise) * self.weights[t[image]]
            for n_scores in range(done + 1, done + n + 1):
                self._test(scored[..., :n_scores], count, alive)
            done += n
        counted = torch.arange(self.max_scores) < count[..., None]
        return _scores((scored * counted).sum(-1) / count, alive)

    def _draw(self, seeds: Sequence[int], racing: Tensor, numbers: range, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """t (B, D) and ε (B, D, C, h, w) of the draws with these numbers; zeros for images that are done."""
        t = torch.zeros(len(seeds), len(numbers), dtype=torch.long)
        noise = torch.zeros(len(seeds), len(numbers), *shape)
        for i in racing.tolist():
            for column, number in enumerate(numbers):
                generator = generator_of(seeds[i], number)
                t[i, column] = torch.randint(len(self.weights), (), generator=generator)
                noise[i, column] = torch.randn(shape, generator=generator)
        return t, noise

    def _test(self, scored: Tensor, count: Tensor, alive: Tensor) -> None:
        """Count the last of these scores (B, K, n) and remove classes from `alive`, for images that are not done."""
        racing = (alive.sum(1) > 1).nonzero()[:, 0]
        n = scored.shape[-1]
        count[racing] = torch.where(alive[racing], n, count[racing])
        if n < self.min_scores or not len(racing):
            return
        values = scored[racing]
        best = values.mean(-1).masked_fill(~alive[racing], torch.inf).argmin(1)
        difference = values - values[torch.arange(len(racing)), best][:, None]
        p = torch.from_numpy(paired_t_test(difference.numpy()))
        alive[racing] &= ~(p < self.cutoff)  # p of the best class itself is nan, so it stays


def _scores(mean_error: Tensor, survived: Tensor) -> Tensor:
    """Minus the mean error (B, K). Eliminated classes get the errors' spread plus one less: below every survivor."""
    spread = mean_error.amax(1, keepdim=True) - mean_error.amin(1, keepdim=True) + 1
    return -(mean_error + spread * ~survived)
