"""Invariant guidance: its prediction by hand, and its training against autograd of the whole loss in float64."""

import pytest
import torch

from domainbed_domainfusion.diffusion import fine_tuning
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.fine_tuning import Pictures, fine_tuned
from domainbed_domainfusion.diffusion.invariant_guidance import InvariantGuidance, invariantly_guided
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting.hparams import added_defaults
from domainbed_domainfusion.seeding import generator_of

SIDE, BATCH, STEPS, RATE, CLASSES = 32, 3, 3, 1e-3, 2
HPARAMS = {
    **added_defaults("DomainFusion", "DigitStyles"),
    "denoising_steps": 2,
    "invariant_steps": STEPS,
    "invariant_batch": BATCH,
    "invariant_lr": RATE,
    "invariant_share": 0.6,
    "invariant_weight": 5.0,
}


def picture(*identity):
    return torch.rand(3, SIDE, SIDE, generator=generator_of("picture", *identity), dtype=torch.float64) * 2 - 1


def domain(number, count):
    """Dark and bright domains, so that their losses differ."""
    return Pictures(count, lambda i: (picture(number, i) * 0.2 * number, i % CLASSES))


DOMAINS = [domain(0, 4), domain(1, 5), domain(2, 6)]


@pytest.fixture
def model(tiny_ldm):
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu", dtype="float64")
    return PromptedModel(ldm, Prompts(ldm, ["dog", "house"]))


def weights(unet):
    return torch.cat([weight.detach().flatten() for weight in unet.parameters()])


def guided(model, **changes):
    return invariantly_guided(model, DOMAINS, {**HPARAMS, **changes}, (7, "test"))


def twin(model, share, weight):
    """The learned U-Net after torch's own AdamW on the whole loss of each step."""
    frozen, learned = model.ldm._unet, model.ldm.trainable_unet()
    optimizer = torch.optim.AdamW(learned.parameters(), lr=RATE)
    for step in range(STEPS):
        generator = generator_of(7, "test", step)
        items = [
            each.item(int(i)) for each in DOMAINS for i in torch.randint(each.number, (BATCH,), generator=generator)
        ]
        images = torch.stack([image for image, _ in items])
        conditions = torch.cat([model.ldm.embed([f"a photo of a {('dog', 'house')[label]}"]) for _, label in items])
        shape = (len(items), 4, SIDE // 4, SIDE // 4)
        sampled, noise = (torch.randn(shape, generator=generator).double() for _ in range(2))
        t = torch.randint(1000, (len(items),), generator=generator)
        with torch.no_grad():
            posterior = model.ldm._vae.encode(images).latent_dist
        z = (posterior.mean + posterior.std * sampled) * model.ldm.scaling_factor
        z_t = model.ldm.scheduler("ddim").add_noise(z, noise, t)
        of_both = [unet(z_t, t, encoder_hidden_states=conditions).sample for unet in (frozen, learned)]
        errors = ((1 - share) * of_both[0] + share * of_both[1] - noise).square()
        of_domains = torch.stack([part.mean() for part in errors.split(BATCH)])
        optimizer.zero_grad()
        (of_domains.mean() + weight * of_domains.var()).backward()
        optimizer.step()
    return weights(learned)


@pytest.mark.parametrize("share, weight", [(0.6, 5.0), (1.0, 0.0), (0.6, 0.0), (0.3, 100.0)])
def test_the_learned_unet_minimises_mean_and_variance_of_the_domains_losses(model, share, weight):
    before = weights(model.ldm._unet)
    unet = guided(model, invariant_share=share, invariant_weight=weight).ldm._unet
    torch.testing.assert_close(weights(unet.learned), twin(model, share, weight), rtol=0, atol=1e-7)
    assert unet.frozen is model.ldm._unet and torch.equal(weights(unet.frozen), before)
    assert not any(each.requires_grad for each in unet.parameters()) and not unet.training


def test_the_weight_of_the_variance_matters(model):
    """The tests above would pass for a loss without variance if it moved nothing."""
    even, uneven = (weights(guided(model, invariant_weight=weight).ldm._unet.learned) for weight in (0.0, 100.0))
    assert (even - uneven).abs().max() > 1e-4


def test_micro_batches_change_nothing(model, monkeypatch):
    whole, errors = weights(guided(model).ldm._unet.learned), fine_tuning._errors

    def small(predictor, noised, part):
        if part.stop - part.start > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return errors(predictor, noised, part)

    monkeypatch.setattr(fine_tuning, "_errors", small)
    torch.testing.assert_close(weights(guided(model).ldm._unet.learned), whole, rtol=0, atol=1e-7)


@torch.no_grad()
def test_its_prediction_lies_between_both(model):
    ldm, z, t = guided(model).ldm, torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([30, 700])
    embeddings = model.prompts.conditional
    frozen, learned = (model.ldm.with_unet(unet) for unet in (ldm._unet.frozen, ldm._unet.learned))
    expected = 0.4 * frozen.predict(z, t, embeddings) + 0.6 * learned.predict(z, t, embeddings)
    torch.testing.assert_close(ldm.predict(z, t, embeddings), expected, rtol=0, atol=1e-12)


def test_candidates_with_one_share_are_the_others(model):
    """share 0: those of φ, share 1: those of the learned U-Net, bit for bit."""
    images = torch.stack([picture("candidate", i) for i in range(2)])
    labels, seeds = torch.tensor([0, 1]), [[1, 2], [3, 4]]
    ours = guided(model).ldm._unet

    def candidates(ldm, **changes):
        sampler = CandidateSampler.of(PromptedModel(ldm, model.prompts), {**HPARAMS, **changes})
        return sampler.sample(images, labels, seeds).images

    for share, unet in ((0.0, ours.frozen), (1.0, ours.learned)):
        mixed = model.ldm.with_unet(InvariantGuidance(ours.frozen, ours.learned, share))
        alone = candidates(model.ldm.with_unet(unet), invariant_steps=0)
        assert torch.equal(candidates(mixed), alone)
    between = candidates(model.ldm.with_unet(InvariantGuidance(ours.frozen, ours.learned, 0.5)))
    assert not torch.equal(between, alone)


def test_a_sampler_without_the_guidance_that_hparams_ask_for_is_refused(model):
    with pytest.raises(InputError, match="invariant_steps learns on the training domains of a training run, and here"):
        CandidateSampler.of(model, HPARAMS)


def test_half_precision_is_trained_in_float32(tiny_ldm):
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu", dtype="bfloat16")
    unet = guided(PromptedModel(ldm, Prompts(ldm, ["dog", "house"]))).ldm._unet
    assert unet.frozen is ldm._unet and unet.learned.dtype == torch.bfloat16
    assert weights(unet.learned).isfinite().all() and not torch.equal(weights(unet.learned), weights(unet.frozen))


def test_one_domain_has_no_variance(model):
    """The variance of one loss is not defined; the mean is minimised."""
    arguments = {"steps": 1, "rate": RATE, "batch": BATCH, "identity": (7,)}
    embeddings = model.prompts.conditional
    one, other = (fine_tuned(model.ldm, embeddings, DOMAINS[:1], variance=v, **arguments) for v in (0.0, 5.0))
    assert torch.equal(weights(one._unet), weights(other._unet))
