"""The sampler against diffusers' own image-to-image pipeline, called once per candidate."""

import json
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion import model
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from tests.tiny_ldm import make_tiny_stable_diffusion

from .conftest import CLASS_NAMES
from .pipelines import SEEDS, SOLVERS, reference

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*clip_sample:FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize(
    "scheduler, steps, strength, guidance, spacing",
    [
        ("ddim", 12, 0.8, 7.5, "leading"),
        ("pndm", 12, 0.8, 7.5, "leading"),
        ("dpmsolver++", 12, 0.8, 7.5, "leading"),
        ("folder", 7, 0.5, 2.0, "leading"),
        ("ddim", 5, 1.0, 1.0, "leading"),
        ("dpmsolver++", 20, 0.3, 7.5, "leading"),
        ("ddim", 12, 0.8, 7.5, "trailing"),
        ("pndm", 12, 0.8, 7.5, "trailing"),
        ("dpmsolver++", 8, 0.8, 7.5, "trailing"),
    ],
)
def test_candidates_are_the_pipelines(
    ldm, prompts, pipeline, images, labels, scheduler, steps, strength, guidance, spacing, record_property
):
    sampler = CandidateSampler(ldm, prompts, steps, strength, guidance, scheduler, timestep_spacing=spacing)
    ours = sampler.sample(images, labels, SEEDS)
    options = {
        "num_inference_steps": steps,
        "strength": strength,
        "guidance_scale": guidance,
        "timestep_spacing": spacing,
    }
    worst = {"latent": 0.0, "pt": 0.0}
    for i, row in enumerate(SEEDS):
        for j, seed in enumerate(row):
            prompt = f"a photo of a {CLASS_NAMES[labels[i]]}"
            for kind, mine in (("latent", ours.latents[i, j]), ("pt", ours.images[i, j] / 2 + 0.5)):
                theirs, _ = reference(pipeline, scheduler, images[i], prompt, seed, kind, **options)
                worst[kind] = max(worst[kind], (mine - theirs).abs().max().item())
    print(f"{scheduler} {spacing} {steps} steps: max difference {worst}")
    record_property("max_difference", worst)
    assert worst["latent"] < 2e-5 and worst["pt"] < 2e-5
    assert ours.images.std() > 0.05


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpmsolver++"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_candidates_from_the_prompt_are_the_text_to_image_pipelines(
    ldm, prompts, pipeline, images, labels, scheduler, guidance
):
    sampler = CandidateSampler(ldm, prompts, 6, 0.5, guidance, scheduler, timestep_spacing="trailing", source="prompt")
    ours = sampler.sample(images, labels, SEEDS)
    assert torch.equal(ours.latents, sampler.sample(-images, labels, SEEDS).latents)
    name, extra = SOLVERS[scheduler]
    solver = getattr(diffusers, name).from_config(pipeline.scheduler.config, timestep_spacing="trailing", **extra)
    theirs = diffusers.StableDiffusionPipeline(
        **{**pipeline.components, "scheduler": solver}, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    size = images.shape[-1]
    for i, row in enumerate(SEEDS):
        for j, seed in enumerate(row):
            expected = theirs(
                f"a photo of a {CLASS_NAMES[labels[i]]}",
                height=size,
                width=size,
                num_inference_steps=6,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images[0]
            torch.testing.assert_close(ours.images[i, j] / 2 + 0.5, expected, atol=2e-5, rtol=0)
    assert sampler.evaluations == theirs.num_timesteps


def test_an_unknown_source_is_refused(ldm, prompts):
    with pytest.raises(ValueError, match="source 'text' is not one of image, prompt"):
        CandidateSampler(ldm, prompts, source="text")


def with_scheduler(folder, name):
    """Edit the folder's configuration to name another scheduler."""
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": name}))
    return folder


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_any_scheduler_the_folder_names(folder, tmp_path, pipeline, images, labels, name):
    """Second-order and stochastic ones too, whose noise comes from each candidate's generator."""
    ldm = LatentDiffusion.load(str(with_scheduler(shutil.copytree(folder, tmp_path / "ldm"), name)), device="cpu")
    sampler = CandidateSampler(ldm, Prompts(ldm, CLASS_NAMES), 12, scheduler="folder")
    ours = sampler.sample(images, labels, SEEDS).latents
    theirs, evaluations = reference(
        pipeline, name, images[1], "a photo of a dog", 4, "latent", num_inference_steps=12, strength=0.8
    )
    assert sampler.evaluations == evaluations
    assert (ours[1, 1] - theirs).abs().max() < 5e-5


def test_a_latent_consistency_model(tmp_path, images, labels, monkeypatch):
    """Its U-Net takes the guidance scale as a condition, here and in the pipeline. No step needs twice the rows."""
    folder = make_tiny_stable_diffusion(tmp_path, time_cond_proj_dim=8)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    ldm = LatentDiffusion.load(str(with_scheduler(folder, "LCMScheduler")), device="cpu")
    sampler = CandidateSampler(ldm, Prompts(ldm, CLASS_NAMES), 4, scheduler="lcm", guidance_scale=8.5)
    rows, predict = [], ldm.predict
    monkeypatch.setattr(ldm, "predict", lambda latents, *rest: rows.append(len(latents)) or predict(latents, *rest))
    ours = sampler.sample(images, labels, SEEDS).latents
    theirs, _ = reference(
        pipeline,
        "LCMScheduler",
        images[1],
        "a photo of a dog",
        4,
        "latent",
        num_inference_steps=4,
        strength=0.8,
        guidance_scale=8.5,
    )
    assert (ours[1, 1] - theirs).abs().max() < 2e-5 and rows == [6, 6, 6]
    sampler.guidance_scale = 2.0
    assert (sampler.sample(images, labels, SEEDS).latents - ours).abs().max() > 1e-3
    own = [899, 600, 250]
    sampler = CandidateSampler(ldm, sampler.prompts, scheduler="lcm", strength=1.0, guidance_scale=8.5, timesteps=own)
    theirs, _ = reference(
        pipeline, "LCMScheduler", images[1], "a photo of a dog", 4, "latent", timesteps=own, strength=1.0,
        guidance_scale=8.5,
    )  # fmt: skip
    assert (sampler.sample(images, labels, SEEDS).latents[1, 1] - theirs).abs().max() < 2e-5
    with pytest.raises(InputError, match="cannot run the denoising_timesteps .5, 6. .*: set them to null, or use dpm"):
        CandidateSampler(ldm, sampler.prompts, scheduler="lcm", timesteps=[5, 6])


def test_more_steps_than_the_scheduler_has(folder, tmp_path):
    ldm = LatentDiffusion.load(
        str(with_scheduler(shutil.copytree(folder, tmp_path / "ldm"), "LCMScheduler")), device="cpu"
    )
    with pytest.raises(InputError, match=r"The scheduler lcm cannot run 60 denoising steps \(.*\): use fewer."):
        CandidateSampler(ldm, Prompts(ldm, CLASS_NAMES), 60, scheduler="lcm")


def test_evaluations_are_the_ones_the_pipeline_runs(ldm, prompts, pipeline, images):
    for scheduler, steps in (("pndm", 50), ("ddim", 12)):
        sampler = CandidateSampler(ldm, prompts, steps, scheduler=scheduler)
        _, evaluations = reference(
            pipeline, scheduler, images[0], "a dog", 0, "latent", num_inference_steps=steps, strength=0.8
        )
        assert sampler.evaluations == evaluations
    assert CandidateSampler(ldm, prompts, 50, scheduler="pndm").evaluations == 41


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_a_batch_split_changes_nothing(ldm, prompts, images, labels, scheduler):
    whole = CandidateSampler(ldm, prompts, 6, scheduler=scheduler).sample(images, labels, SEEDS)
    for batch_size in (1, 4):
        split = CandidateSampler(ldm, prompts, 6, scheduler=scheduler, batch_size=batch_size)
        assert torch.allclose(split.sample(images, labels, SEEDS).images, whole.images, atol=2e-5)
    alone = CandidateSampler(ldm, prompts, 6, scheduler=scheduler).sample(images[1:2], labels[1:2], [[4]])
    assert torch.allclose(alone.images[0, 0], whole.images[1, 1], atol=2e-5)


def test_image_label_and_seed_all_count(ldm, prompts, images, labels):
    sampler = CandidateSampler(ldm, prompts, 6)
    one = sampler.sample(images, labels, [[1]] * 3).images
    assert not torch.allclose(one, sampler.sample(images, labels, [[2]] * 3).images, atol=1e-3)
    assert not torch.allclose(one, sampler.sample(images, labels.roll(1), [[1]] * 3).images, atol=1e-5)
    assert not torch.allclose(one, sampler.sample(images.flip(-1), labels, [[1]] * 3).images, atol=1e-3)


def test_images_are_in_range_and_of_the_size_given(ldm, prompts, labels):
    candidates = CandidateSampler(ldm, prompts, 4).sample(torch.zeros(3, 3, 24, 24), labels, SEEDS)
    assert candidates.images.shape == (3, 2, 3, 24, 24) and candidates.latents.shape == (3, 2, 4, 6, 6)
    assert candidates.images.dtype == torch.float32 and candidates.images.abs().max() <= 1


@pytest.mark.parametrize("steps, strength", [(12, 0.0), (12, 1.5), (4, 0.2)])
def test_no_step_to_run_is_an_error(ldm, prompts, steps, strength):
    with pytest.raises(InputError) as error:
        CandidateSampler(ldm, prompts, steps, strength)
    assert str(error.value) == (
        f"{steps} denoising steps at strength {strength} leave no step to run: strength must "
        "lie in (0, 1] and steps x strength must be at least 1."
    )


def test_images_that_are_not_finite_are_an_error(ldm, prompts, images, labels):
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"Generated images are not finite in torch.float32: run the LDM in bfloat16"):
        CandidateSampler(ldm, prompts, 2).sample(images, labels, SEEDS)


def test_compiled_is_eager(tmp_path, images, labels):
    """The backend runs torch's own kernels. Fused kernels need a compiler, and torch tests them."""
    one_level = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    ldm = LatentDiffusion.load(str(make_tiny_stable_diffusion(tmp_path, **one_level)), device="cpu")
    prompts, confidence = Prompts(ldm, CLASS_NAMES), torch.tensor([0.3, 0.75, 0.99])
    sampler, distillation = CandidateSampler(ldm, prompts, 3), LatentDistillation(ldm, prompts, gradient="full")
    eager = sampler.sample(images, labels, SEEDS)
    slope = distillation.coefficients(images, labels, confidence, [1, 2, 3])
    graphs = []
    ldm.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    compiled = sampler.sample(images, labels, SEEDS)
    assert len(graphs) >= 2 and torch.allclose(compiled.images, eager.images, atol=1e-5)
    count = len(graphs)
    again = distillation.coefficients(images, labels, confidence, [1, 2, 3])
    assert (
        torch.equal(again[1], slope[1]) and len(graphs) == count
    )  # no compiled network runs where a gradient is computed


class SamePlace:
    """A network that writes all results of a shape to the same memory, as the replay of a CUDA graph does."""

    def __init__(self, network):
        self.network, self.places = network, {}

    def __call__(self, *args, **kwargs):
        result = self.network(*args, **kwargs).sample
        return SimpleNamespace(sample=self.places.setdefault(result.shape, torch.empty_like(result)).copy_(result))


@pytest.mark.parametrize("scheduler", ["pndm", "dpmsolver++"])  # both remember earlier predictions
def test_results_survive_the_next_replay_of_a_cuda_graph(ldm, prompts, images, labels, monkeypatch, scheduler):
    monkeypatch.setitem(model.DECODER_SLICE, "cpu", 2 * 32 * 32)
    sampler = CandidateSampler(ldm, prompts, 6, scheduler=scheduler)
    eager = sampler.sample(images, labels, SEEDS)
    monkeypatch.setattr(ldm, "_compiled", {"unet": SamePlace(ldm._unet), "decode": SamePlace(ldm._decoder.decode)})
    monkeypatch.setattr(ldm, "_uses_cuda_graphs", True)
    replayed = sampler.sample(images, labels, SEEDS)
    assert torch.equal(replayed.latents, eager.latents) and torch.equal(replayed.images, eager.images)


def test_cuda_graphs_need_a_gpu(ldm):
    with pytest.raises(InputError) as error:
        ldm.compile(cuda_graphs=True)
    assert str(error.value) == (
        'The hparam ldm_compile is "cuda_graphs", but the diffusion model runs on the CPU: set it to true or false.'
    )
