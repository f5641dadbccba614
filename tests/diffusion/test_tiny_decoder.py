"""An AutoencoderTiny instead of the VAE, against diffusers' pipeline with its VAE replaced."""

import json
import pickle

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.diffusion.source import resolve_source
from domainbed_domainfusion.errors import InputError

from .conftest import CLASS_NAMES

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*clip_sample:FutureWarning")


@pytest.fixture
def tiny(folder, autoencoder):
    return LatentDiffusion.load(str(folder), device="cpu", decoder=str(autoencoder))


def sentence_of(folder, decoder):
    with pytest.raises(InputError) as error:
        resolve_source(str(folder), decoder=str(decoder))
    return str(error.value)


def test_candidates_are_those_of_a_pipeline_with_this_decoder(folder, autoencoder, tiny, images, labels):
    ours = CandidateSampler(tiny, Prompts(tiny, CLASS_NAMES), 6).sample(images, labels, [[1], [2], [3]])
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    solver = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        **{**pipeline.components, "scheduler": solver}, requires_safety_checker=False
    )
    latents = pipeline(
        "a photo of a dog",
        image=(images[1:2] + 1) / 2,
        output_type="latent",
        num_inference_steps=6,
        strength=0.8,
        generator=torch.Generator().manual_seed(2),
    ).images
    assert torch.allclose(ours.latents[1], latents, atol=2e-5)
    pipeline.vae = diffusers.AutoencoderTiny.from_pretrained(autoencoder)  # the pipeline decodes with its VAE
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    theirs = pipeline.image_processor.postprocess(decoded, output_type="pt", do_denormalize=[True])
    assert theirs.std() > 0.02 and torch.allclose(ours.images[1] / 2 + 0.5, theirs, atol=2e-5)


def test_only_the_decoder_changes(ldm, tiny, autoencoder, images):
    latents = ldm.encode(images)
    assert torch.equal(tiny.encode(images), latents)
    assert (tiny.decode(latents) - ldm.decode(latents)).abs().max() > 0.1
    expected = diffusers.AutoencoderTiny.from_pretrained(autoencoder).decode(latents / 1.7).sample.clamp(-1, 1)
    assert torch.allclose(tiny.decode(latents), expected, atol=1e-6)
    assert pickle.loads(pickle.dumps(tiny)) is tiny


def test_a_decoder_that_does_not_exist(folder, tmp_path):
    assert sentence_of(folder, tmp_path / "nothing") == (
        f"The decoder {tmp_path}/nothing does not exist: give an existing folder of a diffusers AutoencoderTiny or a "
        "hub id such as madebyollin/taesd."
    )


def test_a_decoder_of_another_kind(folder):
    assert sentence_of(folder, folder / "vae") == (
        f"The decoder in {folder}/vae is of class AutoencoderKL, not an AutoencoderTiny: give the folder of one, such "
        "as madebyollin/taesd."
    )


@pytest.mark.parametrize(
    "change, offered",
    [({"latent_channels": 16}, "16 channels at 4"), ({"num_decoder_blocks": [3, 3, 3, 1]}, "4 channels at 8")],
)
def test_a_decoder_for_another_model(folder, autoencoder, tmp_path, change, offered):
    config = json.loads((autoencoder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(
        (autoencoder / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert sentence_of(folder, tmp_path) == (
        f"The decoder in {tmp_path} reads {offered} pixels per latent, but the model's latents have 4 at 4: use one "
        "made for this model."
    )


def test_a_decoder_without_safetensors(folder, autoencoder, tmp_path):
    (tmp_path / "config.json").write_bytes((autoencoder / "config.json").read_bytes())
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert f"{tmp_path} has only pickled weights" in sentence_of(folder, tmp_path)
