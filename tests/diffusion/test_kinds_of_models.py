"""The kinds of models that docs/domainbed.md lists, in the tiny size; most of all Stable Diffusion 2.x.

2.x may predict v = √ᾱ ε − √(1 − ᾱ) z. The twins of the other tests ask a U-Net for ε. Here they ask `Noise`, the
v-model's U-Net with ε computed in float64.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.class_scores import NoiseErrors, staged_elimination
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.evaluations import COUNT
from domainbed_domainfusion.diffusion.fine_tuning import Pictures, fine_tuned
from domainbed_domainfusion.diffusion.mixed_prompt import MixedPromptLoss
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting.ld_presets import with_ld_preset
from domainbed_domainfusion.seeding import generator_of
from tests.tiny_ldm import make_tiny_stable_diffusion

from . import test_fine_tuning, test_mixed_prompt, test_projection
from .conftest import CLASS_NAMES
from .pipelines import SEEDS, reference
from .test_class_scores import Twin
from .test_distillation import CONFIDENCE, Algorithm2, Reading, compute_reference
from .test_distillation import SEEDS as LD_SEEDS

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*clip_sample:FutureWarning", "ignore::DeprecationWarning")


#: What 2.x's U-Net has and 1.x's has not: a head width for each level, and linear projections.
UNET_2 = {"use_linear_projection": True, "attention_head_dim": [2, 4]}
#: Of the table in docs/domainbed.md: the U-Net's options, the scheduler's configuration.
KINDS = {
    "Stable Diffusion 1.x": ({}, {}),
    "Stable Diffusion 2.x, noise": (UNET_2, {"_class_name": "DDIMScheduler"}),
    "Stable Diffusion 2.x, v": (UNET_2, {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}),
    "SD-Turbo": (UNET_2, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}),
    "latent consistency model": ({"time_cond_proj_dim": 8}, {"_class_name": "LCMScheduler"}),
}


def make(path, kind):
    """A folder of this kind. 2.x's text encoder has GELU."""
    unet, scheduler = KINDS[kind]
    make_tiny_stable_diffusion(path, **unet)
    text_encoder = {"hidden_act": "gelu"} if unet is UNET_2 else {}
    for name, changes in (("scheduler/scheduler_config.json", scheduler), ("text_encoder/config.json", text_encoder)):
        (path / name).write_text(json.dumps({**json.loads((path / name).read_text()), **changes}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("ldm") / "tiny-2", "Stable Diffusion 2.x, v")


def documented():
    """The table's rows: kind → (hparams, U-Net evaluations of a candidate)."""
    page = (Path(__file__).parents[2] / "docs" / "domainbed.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| [\w./-]+ \| `(\{.*\})` \| (\d+) \|$", page, re.M)
    return {kind: (json.loads(hparams), int(evaluations)) for kind, hparams, evaluations in rows}


def test_the_table_has_these_kinds():
    assert list(documented()) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_that_are_documented_for_a_kind_of_model(kind, tmp_path, images, labels):
    """Its candidates are the pipeline's, at the evaluations that the table states; LD agrees in both modes."""
    changed, evaluations = documented()[kind]
    defaults = host.hparams_registry.default_hparams("DomainFusion", "PACS")
    hparams = with_ld_preset({**defaults, **changed, "ldm": str(make(tmp_path / "ldm", kind)), "ldm_dtype": "float32"})
    model = PromptedModel.load({**hparams, "image_size": 32}, CLASS_NAMES, torch.device("cpu"))
    sampler, before = CandidateSampler.of(model, hparams), COUNT.number
    ours = sampler.sample(images, labels, [[1], [2], [3]]).latents
    assert COUNT.number - before == evaluations * 3
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(hparams["ldm"], safety_checker=None)
    name = KINDS[kind][1].get("_class_name", "DDIMScheduler")
    for i, seed in enumerate((1, 2, 3)):
        theirs, _ = reference(
            pipeline, name, images[i], f"a photo of a {CLASS_NAMES[labels[i]]}", seed, "latent",
            hparams["timestep_spacing"], num_inference_steps=hparams["denoising_steps"],
            strength=hparams["strength"], guidance_scale=hparams["guidance_scale"],
        )  # fmt: skip
        assert (ours[i, 0] - theirs).abs().max() < 5e-5
    slopes = []
    for mode in ("forward", "reverse"):
        distillation = LatentDistillation.of(model, {**hparams, "ld_gradient_mode": mode, "ld_batch": 3})
        slopes.append(distillation.coefficients(images, labels, CONFIDENCE, LD_SEEDS)[1])
    assert slopes[0].abs().min() > 0
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-7)


@pytest.fixture(scope="module")
def double(folder):
    return LatentDiffusion.load(str(folder), device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def single(folder):
    return LatentDiffusion.load(str(folder), device="cpu")


class Noise:
    """A v-model's U-Net as one that predicts ε = √(1 − ᾱ) z_t + √ᾱ v."""

    def __init__(self, unet):
        self.unet = unet
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)

    def __call__(self, z_t, t, **condition):
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - a).sqrt() * z_t + a.sqrt() * self.unet(z_t, t, **condition).sample)


def asked_for_noise(ldm):
    """What the twins use of a model."""
    return SimpleNamespace(
        _unet=Noise(ldm._unet), _vae=ldm._vae, embed=ldm.embed, encode=ldm.encode, decode=ldm.decode,
        alphas_cumprod=ldm.alphas_cumprod,
    )  # fmt: skip


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpmsolver++", "EulerDiscreteScheduler"])
def test_candidates_are_the_pipelines(folder, single, images, labels, scheduler, guidance, spacing, monkeypatch):
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    name = scheduler
    if scheduler == "EulerDiscreteScheduler":
        name = "folder"
        monkeypatch.setitem(single._scheduler_config, "_class_name", scheduler)
    sampler = CandidateSampler(single, Prompts(single, CLASS_NAMES), 6, 0.7, guidance, name, timestep_spacing=spacing)
    ours = sampler.sample(images, labels, SEEDS).latents
    for i, row in enumerate(SEEDS):
        for j, seed in enumerate(row):
            theirs, evaluations = reference(
                pipeline, scheduler, images[i], f"a photo of a {CLASS_NAMES[labels[i]]}", seed, "latent", spacing,
                num_inference_steps=6, strength=0.7, guidance_scale=guidance,
            )  # fmt: skip
            assert (ours[i, j] - theirs).abs().max() < 5e-5
            assert sampler.evaluations == evaluations


def test_the_agreement_that_ends_guidance_is_that_of_the_noise(single, images, labels, monkeypatch):
    """Cosines of v and of ε differ, and the threshold lies between them."""
    prompts, seen = Prompts(single, CLASS_NAMES), []
    predict = single.predict
    monkeypatch.setattr(single, "predict", lambda *given: seen.append((given, predict(*given))) or seen[-1][1])
    sampler = CandidateSampler(single, prompts, 4, 1.0, guidance_agreement=-1.0)
    sampler.sample(images, labels, [[1], [2], [3]])
    (z_t, t, *_), v = seen[0]
    a = single.alphas_cumprod[t][:, None, None, None]
    noise = (1 - a).sqrt() * z_t + a.sqrt() * v
    of_v, of_noise = (torch.cosine_similarity(*(half.flatten(1) for half in each.chunk(2))) for each in (v, noise))
    threshold = (of_v[0] + of_noise[0]).item() / 2
    assert abs(of_v[0] - of_noise[0]) > 1e-5
    seen.clear()
    CandidateSampler(single, prompts, 4, 1.0, guidance_agreement=threshold).sample(images[:1], labels[:1], [[1]])
    assert len(seen[1][1]) == (1 if of_noise[0] > threshold else 2)


@pytest.mark.parametrize("gradient", ["sds", "full", "guidance"])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_latent_distillation_is_algorithm_2s_on_the_noise(folder, double, images, labels, gradient, mode):
    algorithm2 = Algorithm2(folder)
    algorithm2.unet = Noise(algorithm2.unet)
    reading = Reading(draws=2, weighting="snr", guidance_scale=3.0)
    values, slopes = compute_reference(algorithm2, images, labels, gradient, reading)
    ours = LatentDistillation(
        double, Prompts(double, CLASS_NAMES), 2, "snr", gradient, gradient_mode=mode, guidance_scale=3.0
    )
    value, slope = ours.coefficients(images, labels, CONFIDENCE, LD_SEEDS)
    torch.testing.assert_close(value, values, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope, slopes, rtol=1e-4, atol=1e-9)


def test_the_zero_shot_errors_are_those_of_the_noise(folder, double, images):
    prompts = Prompts(double, CLASS_NAMES)
    twin = Twin(folder, prompts)
    twin.unet = Noise(twin.unet)
    scores = staged_elimination(NoiseErrors(double, prompts, images, micro_batch=4), (4, 8, 8), [5, 6, 7], 3, [[2, 3]])
    for image, seed, row in zip(images, [5, 6, 7], scores):
        for label in range(3):
            errors = [
                twin.errors(image, label, t, torch.randn(4, 8, 8, generator=generator_of(seed, t)))[0]
                for t in (250, 750)
            ]
            assert -sum(errors) / 2 == pytest.approx(row[label].item(), rel=1e-5)


def test_the_loss_under_a_mixture_of_prompts_and_its_gradient(double):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64)
    p, t = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True), torch.tensor([3, 400, 999])
    expected = test_mixed_prompt.by_hand(asked_for_noise(double), image, p, t, noise)
    (slope,) = torch.autograd.grad(expected, p)
    loss = MixedPromptLoss(double, Prompts(double, test_mixed_prompt.NAMES))
    value, found = loss(loss.latents(image), p, t, noise)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-9)


def test_the_projection_is_ddpms(double):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    found = test_projection.projection(double)(images, [5, 6])
    for image, seed, each in zip(images, (5, 6), found):
        by_hand = test_projection.by_hand(asked_for_noise(double), image, seed)
        torch.testing.assert_close(each, by_hand, rtol=0, atol=2e-4)


def test_fine_tuning_trains_v(double):
    """One step of AdamW on mean((v − v_φ)²), as diffusers' training scripts have it."""
    embedding = double.embed(["a dog"])
    domains = [Pictures(6, lambda i: (test_fine_tuning.picture(i), 0))]
    tuned = fine_tuned(double, embedding, domains, steps=1, rate=1e-3, batch=2, identity=(7, "test"))
    unet, generator = double.trainable_unet(), generator_of(7, "test", 0)
    images = torch.stack([test_fine_tuning.picture(i) for i in torch.randint(6, (2,), generator=generator).tolist()])
    sampled, noise = (torch.randn(2, 4, 4, 4, generator=generator).double() for _ in range(2))
    t = torch.randint(1000, (2,), generator=generator)
    posterior = double._vae.encode(images).latent_dist
    z = (posterior.mean + posterior.std * sampled) * 0.4
    solver = double.scheduler("ddim")
    predicted = unet(solver.add_noise(z, noise, t), t, encoder_hidden_states=embedding.expand(2, -1, -1)).sample
    loss = (predicted - solver.get_velocity(z, noise, t)).square().mean()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()
    for name, weight in unet.named_parameters():
        torch.testing.assert_close(tuned._unet.get_parameter(name), weight, rtol=0, atol=1e-6, msg=name)
