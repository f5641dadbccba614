"""The zero-shot scorers against plain loops in float64 over diffusers' modules, and against scipy's t-test."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from scipy.stats import ttest_rel

from domainbed_domainfusion.diffusion.class_scores import (
    NoiseErrors,
    PairedTestPruning,
    paired_t_test,
    stage_timesteps,
    staged_elimination,
    x0_weights,
)
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.seeding import generator_of

from .conftest import CLASS_NAMES

SEEDS = [5, 6, 7]
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def prompted(folder):
    ldm = LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    return ldm, Prompts(ldm, CLASS_NAMES)


class Twin:
    """One image, class and timestep at a time."""

    def __init__(self, folder, prompts):
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float64).eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float64).eval()
        self.text = prompts.conditional
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)

    @torch.no_grad()
    def errors(self, image, label, t, noise):
        """(mean squared ε-error, mean squared x0-error)."""
        z = self.vae.encode(image[None].double()).latent_dist.mode() * 0.4
        alpha = self.alphas_cumprod[t]
        noised = alpha.sqrt() * z + (1 - alpha).sqrt() * noise.double()
        predicted = self.unet(noised, t, encoder_hidden_states=self.text[label][None]).sample
        x0 = (noised - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
        return ((noise - predicted) ** 2).mean().item(), ((z - x0) ** 2).mean().item()


@pytest.fixture(scope="module")
def twin(folder, prompted):
    return Twin(folder, prompted[1])


def test_without_elimination_it_is_every_class_at_every_timestep(prompted, twin, images):
    expected = [
        [
            -np.mean(
                [
                    twin.errors(image, label, t, torch.randn(SHAPE, generator=generator_of(seed, t)))[0]
                    for t in (125, 375, 625, 875)
                ]
            )
            for label in range(3)
        ]
        for image, seed in zip(images, SEEDS)
    ]
    errors = NoiseErrors(*prompted, images, micro_batch=7)
    scores = staged_elimination(errors, SHAPE, SEEDS, 3, [[1, 3], [2, 3], [4, 3]])
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert errors.evaluations == 3 * 3 * 4


def test_without_pruning_it_is_the_weighted_x0_error(prompted, twin, images):
    expected = []
    for image, seed in zip(images, SEEDS):
        draws = []
        for number in range(4):
            generator = generator_of(seed, number)
            draws.append((int(torch.randint(1000, (), generator=generator)), torch.randn(SHAPE, generator=generator)))
        expected.append(
            [
                -np.mean([np.exp(-7 * t / 1000) * twin.errors(image, label, t, noise)[1] for t, noise in draws])
                for label in range(3)
            ]
        )
    pruning = PairedTestPruning(20, 4, 2e-3, x0_weights(prompted[0].alphas_cumprod))
    scores = pruning(NoiseErrors(*prompted, images, 7), SHAPE, SEEDS, 3)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_the_stages_timesteps_are_evenly_spaced_parts_of_the_last():
    first, second = stage_timesteps([[50, 5], [500, 1]])
    assert first == list(range(11, 1000, 20))
    assert sorted(first + second) == list(range(1, 1000, 2))
    assert stage_timesteps([[1, 5], [3, 1]]) == [[499], [166, 832]]
    assert stage_timesteps([[1, 3], [2, 2], [4, 1]]) == [[625], [375, 875], [125]]


class MadeUp:
    """Errors that depend on (image, class, t) as real ones do, but cost nothing; `asked` counts them."""

    def __init__(self, images, classes, spread=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.level = torch.rand(images, classes, generator=generator, dtype=torch.float64)
        self.wave = 1 + 9 * torch.rand(images, classes, generator=generator, dtype=torch.float64)
        self.spread, self.asked = spread, 0

    def __call__(self, image, label, t, noise):
        self.asked += len(image) * t.shape[1]
        one = noise.double().flatten(2).mean(2)[image]
        return (
            self.level[image, label][:, None]
            + self.spread * torch.sin(t[image] * self.wave[image, label][:, None])
            + one
        )


def test_the_stages_keep_the_classes_with_the_least_mean_error_so_far():
    images, classes, stages = 20, 10, [[2, 6], [6, 4], [18, 3]]
    errors = MadeUp(images, classes)
    scores = staged_elimination(errors, SHAPE, range(images), classes, stages)
    saved = 0
    for i in range(images):
        alive, values = list(range(classes)), {k: [] for k in range(classes)}
        for new, (_, keep) in zip(stage_timesteps(stages), stages):
            for t in new:
                noise = torch.randn(SHAPE, generator=generator_of(i, t)).double().mean().item()
                for k in alive:
                    values[k].append(errors.level[i, k].item() + 0.3 * np.sin(t * errors.wave[i, k].item()) + noise)
            first = alive[0] if len(alive) < classes else None
            alive = sorted(alive, key=lambda k: np.mean(values[k]))[:keep]
            saved += first is not None and first != alive[0]
        means = -np.array([np.mean(values[k]) for k in range(classes)])
        eliminated = [k for k in range(classes) if k not in alive]
        np.testing.assert_allclose(scores[i, alive], means[alive])
        np.testing.assert_allclose(scores[i, eliminated], means[eliminated] - 1 - (means.max() - means.min()))
    assert saved > 2  # later timesteps change the order of the survivors
    assert errors.asked == images * (10 * 2 + 6 * 4 + 4 * 12)


@pytest.mark.parametrize("n", [2, 3, 20, 200])
def test_the_paired_t_test_is_scipys(n):
    a, b = np.random.default_rng(n).normal(size=(2, 5, 4, n))
    b += 0.3 * np.arange(4)[:, None]
    np.testing.assert_allclose(paired_t_test(b - a), ttest_rel(b, a, axis=-1).pvalue, rtol=1e-9)


def test_equal_scores_are_no_reason_to_prune_and_a_constant_gap_is():
    assert np.isnan(paired_t_test(np.zeros(5))) and paired_t_test(np.full(5, 0.25)) == 0


def algorithm1(errors, i, seed, classes, min_scores, max_scores, cutoff, weights):
    """Clark & Jaini's Algorithm 1 for one image: the classes left, their mean scores, the scores made."""
    scores, alive, made, n = {k: [] for k in range(classes)}, list(range(classes)), 0, 0
    while len(alive) > 1 and n < max_scores:
        generator = generator_of(seed, n)
        t = int(torch.randint(1000, (), generator=generator))
        noise = torch.randn(SHAPE, generator=generator).double().mean().item()
        n += 1
        for k in alive:
            error = errors.level[i, k].item() + errors.spread * np.sin(t * errors.wave[i, k].item()) + noise
            scores[k].append(error * weights[t].item())
            made += 1
        best = min(alive, key=lambda k: np.mean(scores[k]))
        if n >= min_scores:
            alive = [k for k in alive if k == best or not ttest_rel(scores[k], scores[best]).pvalue < cutoff]
    return alive, [np.mean(scores[k]) for k in range(classes)], made


@pytest.mark.parametrize("group", [1, 37, 5000])
def test_pruning_is_the_published_algorithm_for_every_group_size(group):
    images, classes, settings = 12, 6, (5, 40, 2e-2)
    weights = 0.5 + torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = MadeUp(images, classes, spread=0.2)
    scores = PairedTestPruning(*settings, weights)(errors, SHAPE, range(images), classes, group)
    expected = [algorithm1(errors, i, i, classes, *settings, weights) for i in range(images)]
    assert len({len(alive) for alive, _, _ in expected}) > 1 and any(made < 6 * 40 for _, _, made in expected)
    for i, (alive, means, _) in enumerate(expected):
        eliminated = [k for k in range(classes) if k not in alive]
        np.testing.assert_allclose(scores[i, alive], -np.array(means)[alive])
        spread = max(means) - min(means) + 1
        np.testing.assert_allclose(scores[i, eliminated], -np.array(means)[eliminated] - spread)
    if group == 1:
        assert errors.asked == sum(made for _, _, made in expected)


def test_a_score_depends_on_the_image_and_its_seed_alone(prompted, images):
    pruning = PairedTestPruning(2, 3, 0.3, x0_weights(prompted[0].alphas_cumprod))

    def score(order, micro_batch):
        errors, seeds = NoiseErrors(*prompted, images[order], micro_batch), [SEEDS[i] for i in order]
        return torch.stack(
            [
                staged_elimination(errors, SHAPE, seeds, 3, [[1, 2], [3, 1]]),
                pruning(errors, SHAPE, seeds, 3, micro_batch),
            ]
        )

    whole = score([0, 1, 2], 64)
    torch.testing.assert_close(score([2, 0, 1], 5), whole[:, [2, 0, 1]], rtol=1e-9, atol=1e-12)
    for i in range(3):
        torch.testing.assert_close(score([i], 1), whole[:, [i]], rtol=1e-9, atol=1e-12)
