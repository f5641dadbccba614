"""Each open choice changes its own part of the results and no other: candidates, content, style or LD's coefficients.

All runs here have the same classifier, images, labels and seeds. One hparam differs.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ..conftest import HostRun

pytestmark = pytest.mark.usefixtures("host_run")  # clears the host's context after each test
N = 3  # candidates
FAST = {"denoising_steps": 4, "candidates": N, "gallery": 0}


@dataclass
class Results:
    """The results of one set of hparams on the same 8 images."""

    candidates: Tensor  # (8, N, 3, 32, 32)
    content: Tensor  # (8,) line 10
    style: Tensor  # (8,) line 11
    images: Tensor  # (8, 3, 32, 32) line 12
    coefficients: Tensor  # (8,) LD's a_i


def load(ldm: str, **hparams):
    """A DomainFusion with its diffusion model, in eval mode. Its classifier's weights do not depend on the hparams."""
    algorithm = HostRun("DomainFusion", ldm=ldm, **{**FAST, **hparams}).algorithm
    algorithm.load_diffusion(torch.device("cpu"))
    return algorithm.eval()


def inputs() -> tuple[Tensor, Tensor, list[list[int]]]:
    """Images in [-1, 1] that differ in colour and contrast, labels, and seeds of N candidates."""
    generator = torch.Generator().manual_seed(0)
    cast, contrast = torch.rand(2, 8, 3, 1, 1, generator=generator)
    x = (torch.randn(8, 3, 32, 32, generator=generator) * (0.1 + 0.4 * contrast) + cast - 0.5).clamp(-1, 1)
    return x, torch.arange(8) % 4, [[100 * i + j for j in range(N)] for i in range(8)]


def results(algorithm) -> Results:
    x, y, seeds = inputs()
    made = algorithm.generation(x, y, seeds)
    candidates = algorithm.generation.sampler.sample(x, y, seeds)
    _, a = algorithm.distillation.coefficients(x, y, algorithm.confidence(x, y), [row[0] for row in seeds])
    return Results(candidates.images, made.content, made.style, made.images, a)


@pytest.fixture(scope="module")
def default(tiny_ldm) -> Results:
    return results(load(tiny_ldm))


def differing(ours: Results, default: Results) -> set[str]:
    return {name for name, value in vars(ours).items() if not torch.equal(value, getattr(default, name))}


#: A choice among the same candidates, and the index that it changes.
CHOICE = [
    ({"style_divergence": "softmax"}, "style"),
    ({"style_space": "latent"}, "style"),
    ({"content_feature": "content"}, "content"),
    ({"content_weight": 0.0}, "content"),
    ({"content_weight": 1.0}, "content"),
]
LATENT_DISTILLATION = [
    {"ld_corruption": "blur"},
    {"ld_corruption": "pepper"},
    {"ld_corruption": "mask"},
    {"ld_corruption": "none"},
    {"ld_gradient": "sds"},
    {"ld_weighting": "one_minus_alpha_bar"},
    {"ld_weighting": "snr"},
    {"ld_draws": 2},
    {"ld_prompts": "next_class"},
]
CANDIDATES = [
    {"denoising_steps": 6},
    {"strength": 0.5},
    {"guidance_scale": 3.0},
    {"guidance_interval": 0.5},
    {"guidance_agreement": -1.0},
    {"reuse_interval": 2},
    {"scheduler": "dpmsolver++", "denoising_timesteps": [700, 300, 20]},
    {"scheduler": "dpmsolver++"},
    {"timestep_spacing": "leading"},
]


@pytest.mark.parametrize("hparams, index", CHOICE, ids=str)
def test_a_choice_among_candidates_changes_its_own_index_only(tiny_ldm, default, hparams, index):
    assert differing(results(load(tiny_ldm, **hparams)), default) == {index, "images"}


@pytest.mark.parametrize("hparams", LATENT_DISTILLATION, ids=str)
def test_an_hparam_of_ld_changes_the_coefficients_only(tiny_ldm, default, hparams):
    assert differing(results(load(tiny_ldm, **hparams)), default) == {"coefficients"}


@pytest.mark.parametrize("hparams", CANDIDATES, ids=str)
def test_an_hparam_of_the_sampler_changes_every_candidate_and_not_ld(tiny_ldm, default, hparams):
    ours = results(load(tiny_ldm, **hparams))
    assert ((ours.candidates - default.candidates).flatten(2).abs().amax(-1) > 0).all()
    assert torch.equal(ours.coefficients, default.coefficients)


def test_another_prompt_changes_the_candidates_and_ld(tiny_ldm, default):
    changed = differing(results(load(tiny_ldm, prompt_template="a drawing of a {}")), default)
    assert {"candidates", "coefficients"} <= changed


def test_without_the_sampling_strategy_the_image_is_its_one_candidate(tiny_ldm):
    x, y, seeds = inputs()
    first = [row[:1] for row in seeds]
    algorithm = load(tiny_ldm, sampling_strategy=False)
    made = algorithm.generation(x, y, first)
    assert torch.equal(made.images, algorithm.generation.sampler.sample(x, y, first).images[:, 0])
    assert algorithm.generation.candidates == 1
    assert made.content.tolist() == made.style.tolist() == [0] * 8


@torch.no_grad()
@pytest.mark.parametrize("hparams", [{}, *(hparams for hparams, _ in CHOICE)], ids=str)
def test_the_choice_is_the_one_that_the_librarys_functions_make(tiny_ldm, hparams):
    """Lines 8 to 12 by loops, with torch's instance norm, cosine and kl_div."""
    algorithm = load(tiny_ldm, **hparams)
    x, y, seeds = inputs()
    h, ldm = algorithm.hparams, algorithm.generation.sampler.ldm
    made, candidates = algorithm.generation(x, y, seeds), algorithm.generation.sampler.sample(x, y, seeds)
    latent = h["style_space"] == "latent"
    originals, others = (ldm.encode(x), candidates.latents) if latent else (x, candidates.images)

    def feature(image: Tensor, body: Tensor) -> Tensor:
        if h["content_feature"] == "content":
            return F.instance_norm(body[None], eps=1e-5).flatten()
        return algorithm.featurizer(image[None] / 2 + 0.5)[0]

    def content_score(i: int, j: int) -> float:
        likeness = F.cosine_similarity(
            feature(x[i], originals[i]), feature(candidates.images[i, j], others[i, j]), dim=0
        )
        confidence = algorithm.confidence(candidates.images[i, j][None], y[i : i + 1])[0]
        return (h["content_weight"] * likeness + (1 - h["content_weight"]) * confidence).item()

    def style_score(i: int, j: int) -> float:
        parts = [
            (statistic(originals[i]), statistic(others[i, j]))
            for statistic in (lambda z: z.mean((1, 2)), lambda z: (z.var((1, 2), correction=0) + 1e-5).sqrt())
        ]
        if h["style_divergence"] == "softmax":
            return sum(F.kl_div(v.log_softmax(0), u.softmax(0), reduction="sum").item() for u, v in parts)
        (m0, m), (s0, s) = parts
        pairs = [(m0.exp(), m.exp()), (s0, s)]
        return sum((F.kl_div(v.log(), u, reduction="sum") - u.sum() + v.sum()).item() for u, v in pairs)

    for i in range(len(x)):
        c, s = (max(range(N), key=lambda j: score(i, j)) for score in (content_score, style_score))
        assert (made.content[i], made.style[i]) == (c, s)
        deviation, mean = torch.std_mean(others[i, s], dim=(1, 2), keepdim=True, correction=0)
        expected = F.instance_norm(others[i, c][None], eps=1e-5)[0] * (deviation**2 + 1e-5).sqrt() + mean
        expected = ldm.decode(expected[None])[0] if latent else expected.clamp(-1, 1)
        torch.testing.assert_close(made.images[i], expected, atol=1e-4, rtol=0)
