"""An AutoencoderTiny's encoder in Latent Distillation, against Algorithm 2 in float64 with that encoder."""

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

from domainbed_domainfusion.diffusion.corruption import corrupt
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.seeding import generator_of

from .test_distillation import CONFIDENCE, SEEDS, Algorithm2, Reading, compute_reference, relative

READING = Reading(draws=2, guidance_scale=3.0)


class WithThisEncoder(Algorithm2):
    """z is what diffusers' image-to-image pipeline would make with the autoencoder in its VAE's place."""

    def __init__(self, folder, autoencoder):
        super().__init__(folder)
        self.vae = diffusers.AutoencoderTiny.from_pretrained(autoencoder, torch_dtype=torch.float64)

    def latent(self, x, p, corruption, seed):
        x = corrupt(x[None].double(), p[None], corruption, [generator_of(seed, "corruption")])
        return retrieve_latents(self.vae.encode(x)) * self.vae.config.scaling_factor


@pytest.mark.parametrize("gradient", ["full", "sds", "guidance"])
def test_value_and_gradient_are_algorithm_2s_with_this_encoder(
    folder, ldm, prompts, autoencoder, images, labels, gradient
):
    values, slopes = compute_reference(WithThisEncoder(folder, autoencoder), images, labels, gradient, READING)
    for mode in ("forward", "reverse"):
        ours = LatentDistillation(
            ldm, prompts, gradient=gradient, gradient_mode=mode, encoder=ldm.tiny_encoder(str(autoencoder)),
            **vars(READING),
        )  # fmt: skip
        value, slope = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
        assert relative(value, values) < 1e-5
        assert relative(slope, slopes) < (1e-3 if gradient == "guidance" else 1e-4)


def test_one_load_per_process_for_each_dtype(folder, ldm, autoencoder):
    encoder = ldm.tiny_encoder(str(autoencoder))
    assert ldm.tiny_encoder(str(autoencoder)) is encoder and encoder.dtype == torch.float32
    double = LatentDiffusion.load(str(folder), device="cpu", dtype="float64").tiny_encoder(str(autoencoder))
    assert double is not encoder and double.encode(torch.zeros(1, 3, 32, 32)).dtype == torch.float64
    assert not hasattr(encoder._tiny, "decoder")  # half of the memory


def test_candidates_are_encoded_by_the_vae_as_before(ldm, autoencoder, images):
    expected = ldm.encode(images)
    ldm.tiny_encoder(str(autoencoder))
    assert torch.equal(ldm.encode(images), expected)


def test_an_encoder_that_does_not_fit_is_said_before_a_step(host_run, tiny_ldm, autoencoder, tmp_path):
    options = {"ldm": tiny_ldm, "lambda2": 0.5}
    with pytest.raises(InputError) as error:
        host_run("DomainFusion", ld_encoder=str(tmp_path / "nothing"), **options)
    assert str(error.value).startswith(f"The encoder {tmp_path}/nothing does not exist: give an existing folder of a")
    other = tmp_path / "other"
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(other)  # fmt: skip
    with pytest.raises(InputError) as error:
        host_run("DomainFusion", ld_encoder=str(other), **options)
    assert str(error.value) == (
        f"The encoder in {other} makes 4 channels at 2 pixels per latent, but the model's latents have 4 at 4: use one "
        "made for this model."
    )


def test_a_run_distils_with_it(host_run, tiny_ldm, autoencoder):
    """The losses are those of a run with the VAE until Latent Distillation begins to differ."""
    rows = {}
    for encoder in (None, str(autoencoder)):
        hparams = {"lambda2": 0.5, "denoising_steps": 2, "candidates": 1, "ld_encoder": encoder}
        run = host_run("DomainFusion", ldm=tiny_ldm, generation_budget=4, **hparams)
        (rows[encoder],) = run.update()
    theirs, ours = rows.values()
    assert ours["raw_loss"] == theirs["raw_loss"] and ours["generated_loss"] == theirs["generated_loss"]
    assert ours["ld_loss"] != theirs["ld_loss"] > 0
