"""The loss under a mixture of prompts against autograd through the whole U-Net, one draw at a time, in float64."""

import pytest
import torch

from domainbed_domainfusion.diffusion import mixed_prompt
from domainbed_domainfusion.diffusion.mixed_prompt import MixedPromptLoss
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError

NAMES = ["dog", "cat", "horse"]


@pytest.fixture
def ldm(tiny_ldm):
    return LatentDiffusion.load(tiny_ldm, device="cpu", dtype="float64")


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(5, 4, 4, 4, generator=generator, dtype=torch.float64)
    return image, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([3, 400, 999, 0, 400]), noise


def by_hand(ldm, image, p, t, noise):
    """L as a function of p, with its graph."""
    z = ldm._vae.encode(image).latent_dist.mean * 0.4
    embeddings = [ldm.embed([f"a photo of a {name}"]) for name in NAMES]
    condition = sum(weight * each for weight, each in zip(p, embeddings))
    total = 0.0
    for when, e in zip(t, noise):
        a = ldm.alphas_cumprod[when].double()
        predicted = ldm._unet((a.sqrt() * z + (1 - a).sqrt() * e), when[None], encoder_hidden_states=condition).sample
        total = total + ((predicted - e) ** 2).mean() / len(t)
    return total


def test_the_loss_and_its_gradient_are_those_of_the_whole_graph(ldm, case):
    image, p, t, noise = case
    p.requires_grad_()
    expected = by_hand(ldm, image, p, t, noise)
    (slope,) = torch.autograd.grad(expected, p)
    with torch.no_grad():
        loss = MixedPromptLoss(ldm, Prompts(ldm, NAMES))
        value, found = loss(loss.latents(image), p, t, noise)
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found, slope, rtol=1e-8, atol=1e-14)
    assert not found.requires_grad and not value.requires_grad
    assert slope.std() > 1e-6 * slope.abs().max()  # the classes differ


def test_a_certain_classifier_has_the_loss_of_its_prompt_alone(ldm, case):
    image, _, t, noise = case
    loss = MixedPromptLoss(ldm, Prompts(ldm, NAMES))
    value, _ = loss(loss.latents(image), torch.tensor([0.0, 0.0, 1.0]), t, noise)
    z, c = loss.latents(image), ldm.embed(["a photo of a horse"])
    a = ldm.alphas_cumprod[t].double()[:, None, None, None]
    predicted = ldm.predict_noise(a.sqrt() * z + (1 - a).sqrt() * noise, t, c.expand(5, -1, -1))
    torch.testing.assert_close(value, (predicted - noise).square().mean(), rtol=0, atol=1e-10)


def test_draws_in_parts_and_memory_that_does_not_suffice_change_nothing(ldm, case, monkeypatch):
    image, p, t, noise = case
    whole = MixedPromptLoss(ldm, Prompts(ldm, NAMES))
    z = whole.latents(image)
    expected, predict, sizes = whole(z, p, t, noise), LatentDiffusion.predict_noise, []
    parts = MixedPromptLoss(ldm, Prompts(ldm, NAMES), batch=2)

    def small(self, latents, *rest):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return predict(self, latents, *rest)

    for limit, expected_sizes in ((None, [2, 2, 1]), (small, [2, 1, 1, 1, 1, 1])):
        sizes.clear()
        record = limit or (lambda self, x, *rest: sizes.append(len(x)) or predict(self, x, *rest))
        monkeypatch.setattr(mixed_prompt.LatentDiffusion, "predict_noise", record)
        for found, value in zip(parts(z, p, t, noise), expected):
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-14)
        assert sizes == expected_sizes
    assert parts.batch == 1


def test_numbers_that_are_not_finite_are_an_error(ldm, case):
    image, p, t, noise = case
    loss = MixedPromptLoss(ldm, Prompts(ldm, NAMES))
    with pytest.raises(InputError, match="The loss of the diffusion model is not finite in torch.float64: run it in "):
        loss(loss.latents(image) / 0, p, t, noise)


def test_the_frozen_model_gets_no_gradient(ldm, case):
    image, p, t, noise = case
    loss = MixedPromptLoss(ldm, Prompts(ldm, NAMES))
    loss(loss.latents(image), p, t, noise)
    assert all(weight.grad is None for weight in ldm._unet.parameters())
