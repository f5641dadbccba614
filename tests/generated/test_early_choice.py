"""The choice among previews: against loops over images and candidates, and what it costs."""

import copy

import pytest
import torch
from torch import nn

from domainbed_domainfusion.diffusion import style
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.evaluations import COUNT
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated.generation import Generation, Judge
from domainbed_domainfusion.hosting.hparams import added_defaults
from domainbed_domainfusion.pixels import PixelRange

SEEDS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
LABELS = torch.tensor([2, 0, 1, 0])
STEPS = 6
HPARAMS = {
    **added_defaults("DomainFusion", "PACS"),
    "candidates": 3,
    "denoising_steps": STEPS,
    "strength": 1.0,
    "sampling_strategy": True,
}


@pytest.fixture(scope="module")
def sampler(tiny_ldm):
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    return CandidateSampler(ldm, Prompts(ldm, ["dog", "cat", "giraffe"]), STEPS, strength=1.0)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 6))
    return Judge(featurizer, nn.Linear(6, 3), PixelRange.of((3, 32, 32), None))


@pytest.fixture(scope="module")
def x():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


def chosen_by_loops(sampler, judge, x, steps, latent):
    """(content, style) of each image: lines 8 to 11 written out, on the previews."""
    previews = sampler.begin(x, LABELS, SEEDS, steps).previews.view(4, 3, *sampler.ldm.encode(x).shape[1:])
    content, styles = [], []
    for i in range(4):
        images = sampler.ldm.decode(previews[i])
        scores, divergences = [], []
        original = sampler.ldm.encode(x[i : i + 1])[0] if latent else x[i]
        mu0, sigma0 = original.mean((1, 2)), original.var((1, 2), correction=0).add(style.EPSILON).sqrt()
        for j in range(3):
            features = [judge.features(each[None])[0] for each in (x[i], images[j])]
            cosine = (features[0] @ features[1]) / (features[0].norm() * features[1].norm())
            confidence = judge.classifier(features[1]).softmax(0)[LABELS[i]]
            scores.append((0.4 * cosine + 0.6 * confidence).item())
            part = previews[i, j] if latent else images[j]
            mu, sigma = part.mean((1, 2)), part.var((1, 2), correction=0).add(style.EPSILON).sqrt()
            kl = (mu0.exp() * (mu0 - mu) - mu0.exp() + mu.exp()).sum()
            divergences.append((kl + (sigma0 * (sigma0 / sigma).log() - sigma0 + sigma).sum()).item())
        content.append(scores.index(max(scores)))
        styles.append(divergences.index(max(divergences)))
    return content, styles


@pytest.mark.parametrize("space", ["pixel", "latent"])
@pytest.mark.parametrize("steps", [1, 4])
@torch.no_grad()
def test_previews_decide_and_the_chosen_are_finished(sampler, judge, x, space, steps):
    made = Generation(sampler, judge, {**HPARAMS, "early_choice": steps, "style_space": space})(x, LABELS, SEEDS)
    content, styles = chosen_by_loops(sampler, judge, x, steps, space == "latent")
    assert (made.content.tolist(), made.style.tolist()) == (content, styles)
    assert len(set(content)) > 1 and content != styles
    whole = sampler.sample(x, LABELS, SEEDS)
    for i, (c, s) in enumerate(zip(content, styles)):
        parts = whole.latents[i] if space == "latent" else whole.images[i]
        mu, sigma, _ = style.decompose(parts[s])
        mixed = style.adain(mu, sigma, style.decompose(parts[c])[2])
        expected = sampler.ldm.decode(mixed[None])[0] if space == "latent" else mixed.clamp(-1, 1)
        torch.testing.assert_close(made.images[i], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_only_the_chosen_run_the_later_steps(sampler, judge, x):
    before = COUNT.number
    made = Generation(sampler, judge, {**HPARAMS, "early_choice": 2})(x, LABELS, SEEDS)
    finished = sum(len({c, s}) for c, s in zip(made.content.tolist(), made.style.tolist()))
    assert 4 <= finished < 12
    assert COUNT.number - before == 2 * (12 * 2 + finished * (STEPS - 2))  # with guidance


def test_without_it_nothing_changes(sampler, judge, x):
    """Neither for a generation without the sampling strategy, which has nothing to choose."""
    alone = {**HPARAMS, "sampling_strategy": False}
    seeds = [row[:1] for row in SEEDS]
    one, other = (
        Generation(sampler, judge, {**alone, "early_choice": steps})(x, LABELS, seeds).images for steps in (None, 2)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("other", ["cache", "pool"])
def test_what_needs_every_candidate_is_refused(sampler, judge, other):
    with pytest.raises(
        InputError, match="early_choice finishes few candidates, but (candidate_cache|generation_devices)"
    ):
        Generation(sampler, judge, {**HPARAMS, "early_choice": 2}, **{other: copy})


def test_a_run_trains_with_it(host_run, tiny_ldm):
    run = host_run("DomainFusion", ldm=tiny_ldm, denoising_steps=4, candidates=3, early_choice=2, generation_interval=1)
    (values,) = run.update(1)
    assert values["generated_images"] > 0
    with pytest.raises(InputError, match="early_choice is 4, but strength runs 3 of the denoising_steps"):
        host_run("DomainFusion", ldm=tiny_ldm, denoising_steps=4, candidates=3, early_choice=4).update(1)
