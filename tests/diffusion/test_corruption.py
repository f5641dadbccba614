"""Every corruption at p = 0 and p = 1, its gradient against finite differences, and the formula of each."""

import itertools
import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from domainbed_domainfusion.diffusion.corruption import CORRUPTIONS, corrupt

CHANGING = sorted(set(CORRUPTIONS) - {"none"})


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def corrupted(images, confidence, kind):
    return corrupt(images, confidence, kind, generators(len(images)))


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_full_confidence_leaves_the_image(images, kind):
    assert torch.equal(corrupted(images, torch.ones(3), kind), images)


@pytest.mark.parametrize("kind", CHANGING)
def test_less_confidence_corrupts_more(images, kind):
    distances = [
        (corrupted(images, torch.full((3,), p), kind) - images).square().mean((1, 2, 3))
        for p in (1.0, 0.9, 0.6, 0.3, 0.0)
    ]
    for nearer, farther in itertools.pairwise(distances):
        assert (farther > nearer).all()


@pytest.mark.parametrize("kind", CHANGING)
def test_gradient_is_that_of_finite_differences(images, kind):
    images = images.double()
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = torch.tensor([0.2, 0.5, 0.83], dtype=torch.float64, requires_grad=True)

    def projection(confidence):
        return (corrupted(images, confidence, kind) * direction).sum((1, 2, 3))

    (gradient,) = torch.autograd.grad(projection(p).sum(), p)
    with torch.no_grad():
        difference = (projection(p + 1e-7) - projection(p - 1e-7)) / 2e-7
    assert gradient.abs().min() > 1e-3
    # A pixel whose blend starts or ends within 1e-7 of p would falsify the difference. These seeds have none.
    assert torch.allclose(gradient, difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_an_image_is_corrupted_alike_alone_and_in_a_batch(images, kind):
    p = torch.tensor([0.2, 0.5, 0.9])
    together = corrupted(images, p, kind)
    alone = corrupt(images[1:2], p[1:2], kind, generators(3)[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.parametrize("kind", CHANGING)
def test_the_range_stays(images, kind):
    result = corrupted(images, torch.tensor([0.1, 0.5, 0.9]), kind)
    assert result.shape == images.shape and result.abs().max() <= 1 + 1e-6


def test_contrast_scales_towards_grey(images):
    assert torch.equal(corrupted(images, torch.full((3,), 0.25), "contrast"), images / 4)


def test_the_full_blur_is_scipys(images):
    blurred = corrupted(images.double(), torch.zeros(3, dtype=torch.float64), "blur")
    expected = gaussian_filter(images.double().numpy(), sigma=32 / 16, axes=(2, 3), mode="mirror", truncate=3)
    assert torch.allclose(blurred, torch.from_numpy(expected), atol=1e-5)


def test_half_a_blur_has_half_the_sigma():
    """An impulse becomes exp(−k²/2σ²), normalised, in both directions."""
    impulse = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    impulse[:, :, 16, 16] = 1
    weights = [math.exp(-((k - 16) ** 2) / 2) if abs(k - 16) <= 6 else 0 for k in range(32)]  # σ = 0.5 · 32 / 16 = 1
    weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    blurred = corrupted(impulse, torch.tensor([0.5], dtype=torch.float64), "blur")
    assert torch.allclose(blurred[0, 0], torch.outer(weights, weights), atol=1e-5)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_pepper_blackens_the_share_it_should(p):
    grey = torch.zeros(8, 3, 32, 32)
    share = -corrupted(grey, torch.full((8,), p), "pepper").mean()
    assert share.item() == pytest.approx(1 - p, abs=0.07)  # half a slope, plus chance
    assert (corrupted(grey, torch.zeros(8), "pepper") == -1).all()


def test_mask_takes_whole_blocks_in_all_channels(images):
    result = corrupted(images + 2, torch.full((3,), 0.5), "mask")
    weight = result / (images + 2)
    blocks = weight.reshape(3, 3, 8, 4, 8, 4)
    assert torch.allclose(blocks, blocks[:, :1, :, :1, :, :1].expand_as(blocks), atol=1e-6)
    assert (weight < 1e-6).any() and (weight > 1 - 1e-6).any()
    assert corrupted(images, torch.zeros(3), "mask").abs().max() == 0
