"""DDA's projection against DDPM's reverse steps written out for one image, with Pillow's resampling as the filter."""

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.projection import Projection
from domainbed_domainfusion.errors import InputError

STEPS, NOISED, WEIGHT, FACTOR = 5, 3, 2.0, 4


@pytest.fixture
def ldm(tiny_ldm):
    return LatentDiffusion.load(tiny_ldm, device="cpu", dtype="float64")


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def projection(ldm, **changes):
    settings = {"steps": STEPS, "noised": NOISED, "weight": WEIGHT, "factor": FACTOR, **changes}
    return Projection(ldm, ldm.embed([""]), **settings)


def filter_matrix(side, factor):
    """LP along one axis: columns of the identity, resized down and up by Pillow."""
    smaller = max(1, side // factor)

    def along(rows, size):
        image = Image.fromarray(np.eye(rows, dtype=np.float32))
        return np.array(image.resize((rows, size), Image.Resampling.BICUBIC))

    return torch.from_numpy(along(smaller, side) @ along(side, smaller)).double()


def by_hand(ldm, image, seed, weight=WEIGHT, factor=FACTOR):
    """Ho et al. 2020, eq. 7, on the chain of every (1000 / STEPS)-th timestep; DDA's correction after each step."""
    generator = torch.Generator().manual_seed(seed)
    reference = ldm.encode(image[None])
    low = filter_matrix(reference.shape[-1], factor)
    times = [1 + i * (1000 // STEPS) for i in range(NOISED)]
    bars = [ldm.alphas_cumprod[t].double().item() for t in times]
    befores = [ldm.alphas_cumprod[0].double().item(), *bars[:-1]]

    def draw():
        return torch.randn(reference.shape[1:], generator=generator)[None].double()

    z = bars[-1] ** 0.5 * reference + (1 - bars[-1]) ** 0.5 * draw()
    for i in reversed(range(NOISED)):
        bar, before = bars[i], befores[i]
        beta = 1 - bar / before
        z = z.detach().requires_grad_()
        predicted = ldm._unet(z, torch.tensor([times[i]]), encoder_hidden_states=ldm.embed([""])).sample
        clean = (z - (1 - bar) ** 0.5 * predicted) / bar**0.5
        mean = (before**0.5 * beta * clean + (1 - beta) ** 0.5 * (1 - before) * z) / (1 - bar)
        deviation = ((1 - before) / (1 - bar) * beta) ** 0.5
        difference = low @ (reference - clean) @ low.T
        (gradient,) = torch.autograd.grad((difference**2).sum().sqrt(), z)
        z = (mean + (deviation * draw() if i else 0) - weight * gradient).detach()
    return ldm.decode(z)[0]


@pytest.mark.parametrize("changes", [{}, {"weight": 0.0}, {"factor": 2}, {"factor": 100}])
def test_it_is_ddpm_with_a_correction_at_every_step(ldm, images, changes):
    found = projection(ldm, **changes)(images, [5, 6, 7])
    for image, seed, each in zip(images, (5, 6, 7), found):
        torch.testing.assert_close(each, by_hand(ldm, image, seed, **changes), rtol=0, atol=2e-4)
    assert found.dtype == torch.float32 and found.shape == images.shape


def test_an_image_depends_on_no_other(ldm, images):
    whole = projection(ldm)(images, [5, 6, 7])
    halved = projection(ldm, batch=2)(images, [5, 6, 7])
    alone = projection(ldm)(images[1:2], [6])
    torch.testing.assert_close(halved, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[0], whole[1], rtol=0, atol=1e-6)


def test_the_correction_keeps_the_coarse_part(ldm, images, monkeypatch):
    monkeypatch.setattr(type(ldm), "decode", lambda self, z: z)

    def distance(weight):
        kept = projection(ldm, weight=weight, noised=STEPS)(images, [5, 6, 7])
        low = filter_matrix(8, FACTOR)
        return (low @ (kept - ldm.encode(images)) @ low.T).norm().item()

    with torch.no_grad():
        assert distance(1.0) < 0.8 * distance(0.0)


def test_images_that_are_not_finite_are_an_error(ldm, images):
    with pytest.raises(InputError, match="Projected images are not finite in torch.float64: run the LDM in bfloat16"):
        projection(ldm, weight=float("inf"))(images, [5, 6, 7])


def test_the_frozen_model_gets_no_gradient(ldm, images):
    with torch.no_grad():
        found = projection(ldm)(images[:1], [5])
    assert not found.requires_grad and all(weight.grad is None for weight in ldm._unet.parameters())


def test_global_generators_do_not_move(ldm, images):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    projection(ldm)(images[:1], [5])
    assert torch.equal(torch.rand(1), expected)
