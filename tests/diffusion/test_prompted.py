"""φ, sampler and Latent Distillation from a run's hparams: every hparam reaches its argument."""

import pytest
import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import InputError

from .conftest import CLASS_NAMES

CPU = torch.device("cpu")
#: No value is the default of the argument that it sets, except the source: from the prompt the strength is 1.
HPARAMS = {
    "denoising_steps": 6,
    "strength": 0.5,
    "guidance_scale": 3.0,
    "scheduler": "pndm",
    "timestep_spacing": "trailing",
    "guidance_interval": 0.25,
    "guidance_agreement": 0.9,
    "reuse_interval": 2,
    "denoising_timesteps": None,
    "candidate_source": "image",
    "ld_draws": 4,
    "ld_antithetic": True,
    "ld_encoder": None,
    "ld_guidance_scale": 3.0,
    "ld_reduction": "sum",
    "ld_prompts": "next_class",
    "ld_timesteps": [0.1, 0.9],
    "ld_weighting": "snr",
    "ld_gradient": "full",
    "ld_corruption": "pepper",
    "ld_batch": 2,
    "ld_gradient_mode": "reverse",
}


def load_hparams(folder, **changed) -> dict:
    defaults = {
        "ldm": str(folder),
        "ldm_revision": None,
        "ldm_dtype": "float64",
        "image_size": 32,
        "prompt_template": "the {}",
    }
    return {**defaults, **changed}


@pytest.fixture
def fresh(monkeypatch):
    """An empty cache of models, so that a compiled model stays inside its test."""
    monkeypatch.setattr("domainbed_domainfusion.diffusion.model._loaded", {})


def test_the_model_is_the_one_that_the_hparams_name(folder, fresh):
    model = PromptedModel.load(load_hparams(folder), CLASS_NAMES, CPU)
    assert model.ldm is LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    assert model.prompts.texts == ["the dog", "the cat", "the giraffe"]
    assert model.ldm._text_encoder is None and not model.ldm._compiled


def test_the_dtype_auto_is_float32_on_a_cpu(folder, fresh):
    assert PromptedModel.load(load_hparams(folder, ldm_dtype="auto"), CLASS_NAMES, CPU).ldm.dtype == torch.float32


def test_it_is_compiled_where_the_hparam_says_so(folder, fresh):
    assert PromptedModel.load(load_hparams(folder, ldm_compile=True), CLASS_NAMES, CPU).ldm._compiled


def test_an_image_size_that_does_not_fit_is_an_input_error(folder, fresh):
    with pytest.raises(InputError, match="image size of 30"):
        PromptedModel.load(load_hparams(folder, image_size=30), CLASS_NAMES, CPU)


def test_every_hparam_of_the_sampler_reaches_its_argument(ldm, prompts):
    sampler = CandidateSampler.of(PromptedModel(ldm, prompts), HPARAMS)
    assert sampler.ldm is ldm and sampler.prompts is prompts
    assert (sampler.steps, sampler.strength, sampler.guidance_scale) == (6, 0.5, 3.0)
    assert (sampler.scheduler, sampler.timestep_spacing, sampler.guidance_interval) == ("pndm", "trailing", 0.25)
    assert sampler.reuse_interval == 2
    assert (sampler.source, sampler.batch_size, sampler.guidance_agreement) == ("image", None, 0.9)
    from_prompt = CandidateSampler.of(PromptedModel(ldm, prompts), {**HPARAMS, "candidate_source": "prompt"})
    assert (from_prompt.source, from_prompt.strength) == ("prompt", 1.0)
    own = {**HPARAMS, "denoising_timesteps": [800, 400], "scheduler": "dpmsolver++"}
    assert CandidateSampler.of(PromptedModel(ldm, prompts), own).timesteps == [800, 400]


def test_every_hparam_of_latent_distillation_reaches_its_argument(ldm, prompts):
    distillation = LatentDistillation.of(PromptedModel(ldm, prompts), HPARAMS)
    assert distillation.ldm is ldm and distillation.prompts is prompts
    assert (distillation.draws, distillation.gradient, distillation.corruption) == (4, "full", "pepper")
    assert distillation.antithetic
    assert (distillation.micro_batch, distillation.gradient_mode) == (2, "reverse")
    assert (distillation.guidance_scale, distillation.reduction, distillation.next_class) == (3.0, "sum", True)
    assert (distillation.first_timestep, distillation.end_timestep) == (100, 900)
    alphas = ldm.alphas_cumprod
    assert torch.equal(distillation._weights, alphas / (1 - alphas))  # "snr"
    assert LatentDistillation.of(PromptedModel(ldm, prompts), {**HPARAMS, "ld_batch": 0}).micro_batch is None
