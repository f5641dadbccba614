"""Style statistics, divergence, choices and AdaIN against loops written out."""

import math

import pytest
import torch

from domainbed_domainfusion.diffusion.style import (
    adain,
    choose_content,
    choose_style,
    decompose,
    statistics,
    style_divergence,
)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def test_statistics_are_mean_and_deviation_of_every_channel():
    x = draw(2, 4, 3, 5, 6) * 2 + 1
    mean, deviation = statistics(x)
    for b in range(2):
        for n in range(4):
            for c in range(3):
                values = x[b, n, c].flatten().tolist()
                average = sum(values) / len(values)
                variance = sum((v - average) ** 2 for v in values) / len(values)
                assert mean[b, n, c].item() == pytest.approx(average, rel=1e-10)
                assert deviation[b, n, c].item() == pytest.approx(math.sqrt(variance + 1e-5), rel=1e-10)


def test_adain_undoes_decompose():
    x = draw(2, 3, 5, 6)
    assert torch.allclose(adain(*decompose(x)), x, rtol=0, atol=1e-12)


def test_adain_gives_the_content_the_style_asked_for():
    content = decompose(draw(2, 3, 8, 8) * 5 - 2)[2]
    mu, sigma = draw(2, 3), draw(2, 3).exp()
    mean, deviation = statistics(adain(mu, sigma, content))
    assert torch.allclose(mean, mu, atol=1e-9)
    assert torch.allclose(deviation, sigma, rtol=1e-4)


def test_a_flat_channel_has_no_content():
    mean, deviation, content = decompose(torch.full((1, 3, 4, 4), 0.25))
    assert content.abs().max() == 0 and mean.unique().tolist() == [0.25] and deviation.isfinite().all()


def poisson(u, v):
    return sum(a * math.log(a / b) - a + b for a, b in zip(u, v))


def softmax(u, v):
    p, q = ([math.exp(x) / sum(math.exp(y) for y in w) for x in w] for w in (u, v))
    return sum(a * math.log(a / b) for a, b in zip(p, q))


@pytest.mark.parametrize("kind", ["poisson", "softmax"])
def test_divergence_against_loops(kind):
    mu0, sigma0, mu, sigma = draw(2, 3), draw(2, 3).exp(), draw(2, 4, 3), draw(2, 4, 3).exp()
    ours = style_divergence(mu0, sigma0, mu, sigma, kind)
    assert ours.shape == (2, 4)
    for b in range(2):
        for j in range(4):
            s0, s = sigma0[b].tolist(), sigma[b, j].tolist()
            if kind == "poisson":
                expected = poisson(mu0[b].exp().tolist(), mu[b, j].exp().tolist()) + poisson(s0, s)
            else:
                expected = softmax(mu0[b].tolist(), mu[b, j].tolist()) + softmax(s0, s)
            assert ours[b, j].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", ["poisson", "softmax"])
def test_divergence_is_zero_for_the_same_style_and_never_negative(kind):
    mu0, sigma0 = draw(2, 3), draw(2, 3).exp()
    same = style_divergence(mu0, sigma0, mu0[:, None], sigma0[:, None], kind)
    assert same.abs().max() < 1e-12
    assert style_divergence(mu0, sigma0, draw(2, 50, 3), draw(2, 50, 3).exp(), kind).min() >= 0


def test_only_poisson_sees_overall_brightness():
    mu0, sigma0 = torch.zeros(1, 3), torch.ones(1, 3)
    brighter = torch.full((1, 1, 3), 0.5)
    assert style_divergence(mu0, sigma0, brighter, sigma0[:, None], "poisson").item() > 0.1
    assert style_divergence(mu0, sigma0, brighter, sigma0[:, None], "softmax").item() == pytest.approx(0, abs=1e-6)


def test_an_unknown_divergence_is_named():
    with pytest.raises(ValueError, match="'cosine' is neither 'poisson' nor 'softmax'"):
        style_divergence(*[torch.ones(1, 1)] * 2, *[torch.ones(1, 1, 1)] * 2, kind="cosine")


def test_choices_against_loops():
    generator = torch.Generator().manual_seed(0)
    # few distinct values, so that ties occur
    similarity = torch.randint(0, 3, (50, 4), generator=generator) / 2
    confidence = torch.randint(0, 3, (50, 4), generator=generator) / 2
    content, style = choose_content(similarity, confidence, 0.4), choose_style(similarity)
    for b in range(50):
        scores = (0.4 * similarity + 0.6 * confidence)[b].tolist()
        assert content[b].item() == scores.index(max(scores))
        assert style[b].item() == similarity[b].tolist().index(max(similarity[b].tolist()))


def test_the_weight_is_that_of_the_similarity():
    similarity, confidence = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert choose_content(similarity, confidence, 0.4).item() == 1
    assert choose_content(similarity, confidence, 0.6).item() == 0
