"""Guidance in a part of the steps, Adaptive Guidance and timesteps of one's own, against diffusers' own pipeline."""

import itertools

import pytest
import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.errors import InputError

from .conftest import CLASS_NAMES
from .pipelines import SEEDS, reference

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*clip_sample:FutureWarning", "ignore::DeprecationWarning")


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
    rows, predict = [], ldm.predict
    monkeypatch.setattr(ldm, "predict", lambda latents, *rest: rows.append(len(latents)) or predict(latents, *rest))
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

    rows, predict = [], ldm.predict
    monkeypatch.setattr(ldm, "predict", lambda latents, *rest: rows.append(len(latents)) or predict(latents, *rest))
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
