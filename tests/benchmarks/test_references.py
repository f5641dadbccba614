"""What is compared does the same: values, gradients and images agree, so only the way there differs."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.candidates import PER_IMAGE, SHIPPED, _methods
from benchmarks.host_run import HostRun
from benchmarks.models import Model, opened
from benchmarks.naive import NaiveDomainFusion
from benchmarks.references import Draw, stock_forward_mode
from benchmarks.step import hparams_for
from domainbed_domainfusion.diffusion.distillation import LatentDistillation, surrogate
from domainbed_domainfusion.hosting import context
from tests import tiny_ldm


@pytest.fixture(scope="module")
def tiny():
    with opened("tiny") as model:
        yield model


def test_sd1_has_stable_diffusions_parameters():
    """U-Net 859,520,964 and VAE 83,653,863, as published weights have."""
    shape = tiny_ldm.SIZES["full"]
    with torch.device("meta"):
        unet, vae = tiny_ldm._unet(shape, {}), tiny_ldm._vae(shape)
    assert isinstance(unet, UNet2DConditionModel) and isinstance(vae, AutoencoderKL)
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964
    assert sum(weight.numel() for weight in vae.parameters()) == 83_653_863
    assert unet.config.attention_head_dim == 8


@pytest.mark.parametrize("gradient", ["full", "sds"])
def test_stock_forward_mode_is_latent_distillation(tiny, gradient, stock_jvp):
    ldm, prompts = tiny.load("cpu", "float64")
    images, labels = tiny.images(3)
    p, seeds = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), [4, 5, 6]
    ours = LatentDistillation(ldm, prompts, gradient=gradient).coefficients(images, labels, p, seeds)
    theirs = stock_forward_mode(
        ldm, images.double(), p, prompts.matched(labels), Draw.of(ldm, tiny.image_size, seeds, torch.float64)
    )
    torch.testing.assert_close(ours[0], theirs.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours[1], getattr(theirs, gradient), rtol=1e-8, atol=0)


def test_the_naive_loss_is_latent_distillation(tiny):
    """Value, and the gradient that reaches the classifier through p."""
    hparams = hparams_for(tiny, "float32")
    naive = NaiveDomainFusion(tiny, HostRun("ERM", tiny, hparams, "cpu"), hparams, "cpu")
    images, labels = tiny.images(4)
    p = torch.tensor([0.2, 0.4, 0.6, 0.9], requires_grad=True)
    theirs = naive.latent_distillation(images, labels, p)
    distillation = LatentDistillation(naive.ldm, naive.prompts, gradient="full")
    ours = surrogate(*distillation.coefficients(images, labels, p.detach(), [1, 2, 3, 4]), p)
    gradients = [torch.autograd.grad(loss, p)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_the_naive_round_replaces_every_image_by_one_of_its_own(tiny):
    hparams = hparams_for(tiny, "float32")
    naive = NaiveDomainFusion(tiny, HostRun("ERM", tiny, hparams, "cpu"), hparams, "cpu")
    before, weights = naive.dataset, [weight.clone() for weight in naive.network.parameters()]
    naive.interval()
    assert [y for _, y in naive.dataset] == [y for _, y in before] and len(before) == 3 * hparams["batch_size"]
    for (x, _), (x0, _) in zip(naive.dataset, before):
        assert x.shape == x0.shape and x.abs().max() <= 1 and not torch.equal(x, x0)
    assert not all(torch.equal(a, b) for a, b in zip(weights, naive.network.parameters()))


def test_ours_and_the_pipeline_make_the_same_candidates(tiny):
    methods = _methods(tiny, "cpu", "float32")
    ours = methods[SHIPPED].run().images.flatten(0, 1)
    theirs = methods[PER_IMAGE].run()
    assert len(theirs) == methods[PER_IMAGE].count
    torch.testing.assert_close(ours[: len(theirs)], theirs, rtol=0, atol=1e-4)


def test_an_epoch_is_a_step(tiny):
    run = HostRun("ERM", tiny, hparams_for(tiny, "float32"), "cpu")
    assert context.current().steps_per_epoch == 1 and len(run.steps(2)) == 2
    assert [split.domain for split in context.current().in_splits] == ["A", "B", "C"]


def test_images_are_the_seeds(tiny):
    one, other = (model.images(3)[0] for model in (tiny, Model("x", "", 32, "DigitStyles")))
    assert torch.equal(one, other) and not torch.equal(one, tiny.images(3, seed=1)[0])
    assert one.shape == (3, 3, 32, 32) and one.min() >= -1 and one.max() <= 1
