"""The sampler against diffusers' own image-to-image pipeline, called once per candidate."""

import itertools
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

SEEDS = [[1, 2], [3, 4], [5, 6]]
SOLVERS = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "folder": ("PNDMScheduler", {}),
}


@pytest.fixture(scope="module")
def pipeline(folder):
    return diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)


def reference(
    pipeline, scheduler, image, prompt, seed, output_type, timestep_spacing="leading", guided=None, **options
):
    name, extra = SOLVERS.get(scheduler, (scheduler, {}))
    solver = getattr(diffusers, name).from_config(pipeline.scheduler.config, timestep_spacing=timestep_spacing, **extra)
    # The pipeline's constructor corrects the scheduler's clipping and first timestep. Assigning a scheduler does not.
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        **{**pipeline.components, "scheduler": solver}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    if guided is not None:
        options = {
            **options,
            "callback_on_step_end": without_guidance_after(guided),
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        }
    return pipeline(
        prompt,
        image=(image[None] + 1) / 2,
        generator=torch.Generator().manual_seed(seed),
        output_type=output_type,
        **options,
    ).images[0], pipeline.num_timesteps


def without_guidance_after(step):
    """diffusers' own way to end guidance early: the pipeline asks this callback after each step."""

    def callback(pipeline, i, t, tensors):
        if i + 1 == step:
            pipeline._guidance_scale = 0.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}
        return {}

    return callback


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
    rows, predict_noise = [], ldm.predict_noise
    monkeypatch.setattr(
        ldm, "predict_noise", lambda latents, *rest: rows.append(len(latents)) or predict_noise(latents, *rest)
    )
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


@pytest.mark.parametrize("scheduler, interval, guided", [("ddim", 0.45, 4), ("pndm", 0.3, 3), ("dpmsolver++", 0.7, 6)])
def test_guidance_in_a_part_of_the_steps(ldm, prompts, pipeline, images, labels, scheduler, interval, guided):
    """Against the pipeline whose guidance is ended by its own callback."""
    sampler = CandidateSampler(ldm, prompts, 12, scheduler=scheduler, guidance_interval=interval)
    ours = sampler.sample(images, labels, SEEDS).latents
    assert (sampler.guided, sampler.evaluations) == (guided, 10 if scheduler == "pndm" else 9)
    theirs, _ = reference(
        pipeline,
        scheduler,
        images[1],
        "a photo of a dog",
        4,
        "latent",
        guided=guided,
        num_inference_steps=12,
        strength=0.8,
        guidance_scale=7.5,
    )
    assert (ours[1, 1] - theirs).abs().max() < 2e-5
    always = CandidateSampler(ldm, prompts, 12, scheduler=scheduler).sample(images, labels, SEEDS).latents
    assert (ours - always).abs().max() > 1e-3


def test_the_ends_of_the_guidance_interval(ldm, prompts, images, labels):
    def latents(**options):
        return CandidateSampler(ldm, prompts, 6, **options).sample(images, labels, SEEDS).latents

    assert torch.equal(latents(guidance_interval=0.0), latents(guidance_scale=1.0))
    assert torch.equal(latents(guidance_interval=1.0), latents())


def test_a_step_without_guidance_runs_half_the_rows(ldm, prompts, images, labels, monkeypatch):
    rows, predict_noise = [], ldm.predict_noise
    monkeypatch.setattr(
        ldm, "predict_noise", lambda latents, *rest: rows.append(len(latents)) or predict_noise(latents, *rest)
    )
    CandidateSampler(ldm, prompts, 5, guidance_interval=0.5).sample(images, labels, SEEDS)
    assert rows == [12, 12, 6, 6]


def agreements(pipeline, scheduler, image, prompt, seed, steps, **options):
    """Of each step of diffusers' guided pipeline: the cosine between its conditional and its unconditional noise."""
    found = []

    def record(module, arguments, output):
        one, other = output[0].double().flatten(1)
        found.append((one @ other / (one.norm() * other.norm())).item())

    hook = pipeline.unet.register_forward_hook(record)
    try:
        reference(pipeline, scheduler, image, prompt, seed, "latent", num_inference_steps=steps, **options)
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpmsolver++"])
def test_adaptive_guidance_ends_where_the_predictions_agree(
    ldm, prompts, pipeline, images, labels, scheduler, monkeypatch
):
    """Against the pipeline: its own callback ends the guidance of each candidate where its own predictions agree."""
    options = {"strength": 0.8, "guidance_scale": 7.5}
    names = [f"a photo of a {CLASS_NAMES[label]}" for label in labels]
    places = [(i, j) for i in range(len(SEEDS)) for j in range(2)]
    cosines = {
        (i, j): agreements(pipeline, scheduler, images[i], names[i], SEEDS[i][j], 8, **options) for i, j in places
    }
    early = sorted(value for values in cosines.values() for value in values[:4])[6:18]
    gap, threshold = max((high - low, (high + low) / 2) for low, high in itertools.pairwise(early))
    assert gap > 1e-5  # so that rounding decides nothing
    ends = {
        place: next((step + 1 for step, value in enumerate(values) if value > threshold), len(values))
        for place, values in cosines.items()
    }
    assert len(set(ends.values())) > 1  # some candidates agree earlier than others

    rows, predict_noise = [], ldm.predict_noise
    monkeypatch.setattr(
        ldm, "predict_noise", lambda latents, *rest: rows.append(len(latents)) or predict_noise(latents, *rest)
    )
    sampler = CandidateSampler(ldm, prompts, 8, scheduler=scheduler, guidance_agreement=threshold)
    ours = sampler.sample(images, labels, SEEDS).latents
    for i, j in places:
        theirs, _ = reference(
            pipeline, scheduler, images[i], names[i], SEEDS[i][j], "latent", guided=ends[i, j], num_inference_steps=8,
            **options,
        )  # fmt: skip
        assert (ours[i, j] - theirs).abs().max() < 2e-5
    assert rows == [6 + sum(end > step for end in ends.values()) for step in range(sampler.evaluations)]


def test_the_ends_of_adaptive_guidance(ldm, prompts, images, labels):
    def latents(**options):
        return CandidateSampler(ldm, prompts, 6, **options).sample(images, labels, SEEDS).latents

    first_step_alone = latents(guidance_interval=0.25)
    torch.testing.assert_close(latents(guidance_agreement=-1.0), first_step_alone, atol=2e-5, rtol=0)
    torch.testing.assert_close(latents(guidance_agreement=1.01), latents(), atol=0, rtol=0)
    together = latents(guidance_agreement=1.01, guidance_interval=0.25)
    torch.testing.assert_close(together, first_step_alone, atol=0, rtol=0)


def test_adaptive_guidance_of_a_candidate_does_not_depend_on_its_batch(ldm, prompts, images, labels):
    whole = CandidateSampler(ldm, prompts, 8, guidance_agreement=0.99).sample(images, labels, SEEDS).latents
    for i in range(len(images)):
        alone = CandidateSampler(ldm, prompts, 8, guidance_agreement=0.99, batch_size=1)
        alone = alone.sample(images[i : i + 1], labels[i : i + 1], SEEDS[i : i + 1]).latents
        torch.testing.assert_close(alone[0], whole[i], atol=2e-5, rtol=0)


TIMESTEPS = [960, 830, 640, 430, 240, 90]


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_timesteps_of_ones_own_are_the_pipelines(ldm, prompts, pipeline, images, labels, strength):
    sampler = CandidateSampler(ldm, prompts, 99, strength, scheduler="dpmsolver++", timesteps=TIMESTEPS)
    ours = sampler.sample(images, labels, SEEDS).latents
    assert sampler.evaluations == len(TIMESTEPS) * strength
    theirs, _ = reference(
        pipeline, "dpmsolver++", images[1], "a photo of a dog", 4, "latent", timesteps=TIMESTEPS, strength=strength,
        guidance_scale=7.5,
    )  # fmt: skip
    assert (ours[1, 1] - theirs).abs().max() < 2e-5 * theirs.abs().max()
    usual = CandidateSampler(ldm, prompts, 6, strength, scheduler="dpmsolver++").sample(images, labels, SEEDS).latents
    assert (ours - usual).abs().max() > 1e-2


def test_timesteps_that_cannot_be_run(ldm, prompts):
    with pytest.raises(InputError, match="scheduler ddim takes steps of one size.*use dpmsolver"):
        CandidateSampler(ldm, prompts, timesteps=TIMESTEPS)
    too_late = ldm.num_train_timesteps
    with pytest.raises(InputError, match=f"begins at {too_late}, but the model's timesteps are 0 to {too_late - 1}"):
        CandidateSampler(ldm, prompts, scheduler="dpmsolver++", timesteps=[too_late, 5])


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
    monkeypatch.setattr(model, "DECODER_SLICE", 2 * 32 * 32)
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
