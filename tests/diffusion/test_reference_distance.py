"""The distance to candidates of many steps, on the pocket model, against diffusers' own pipeline."""

import math

import diffusers
import numpy as np
import pytest
import torch

from domainbed_domainfusion import pixels
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.diffusion.reference_distance import ReferenceDistance
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pocket import CLASS_NAMES, LDM_FOLDER
from domainbed_domainfusion.pocket.digit_styles import render

from .pipelines import reference

HPARAMS = {
    **host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"),
    "scheduler": "dpmsolver++",
    "strength": 0.8,
    "denoising_steps": 5,
    "timestep_spacing": "trailing",
}
SEEDS = [11, 12, 13]
LABELS = torch.tensor([3, 4, 5])


@pytest.fixture(scope="module")
def model():
    return PromptedModel.load(HPARAMS, list(CLASS_NAMES), torch.device("cpu"))


@pytest.fixture(scope="module")
def pocket_pipeline():
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(LDM_FOLDER, safety_checker=None)
    return pipeline.to(torch.float32)


@pytest.fixture(scope="module")
def digits():
    """(3, 3, 32, 32) in [-1, 1]: a three, a four and a five of two domains."""
    return pixels.from_store(torch.from_numpy(np.stack([render("A", 3), render("P", 4), render("A", 5)])))


def by_the_pipeline(pipeline, digits, output_type, **schedule):
    """One candidate of each digit: latents or images in [-1, 1], float64."""
    options = {"strength": HPARAMS["strength"], "guidance_scale": HPARAMS["guidance_scale"], **schedule}
    made = [
        reference(
            pipeline,
            "dpmsolver++",
            image,
            f"a photo of a {CLASS_NAMES[label]}",
            seed,
            output_type,
            "trailing",
            **options,
        )[0]
        for image, label, seed in zip(digits, LABELS.tolist(), SEEDS)
    ]
    if output_type == "latent":
        return torch.stack(made).double()
    return torch.stack([torch.from_numpy(each).permute(2, 0, 1) for each in made]).double() * 2 - 1


def distance_of(model, digits, **changed):
    steps = changed.pop("reference_steps", 20)
    return ReferenceDistance(model, {**HPARAMS, **changed}, digits, LABELS, SEEDS, steps)


def test_distances_are_those_of_the_pipelines_candidates(model, pocket_pipeline, digits):
    ours = distance_of(model, digits)
    many = by_the_pipeline(pocket_pipeline, digits, "latent", num_inference_steps=20)
    found = {}
    for run in ((780, 500, 310, 70), (799, 599, 399, 199)):
        few = by_the_pipeline(pocket_pipeline, digits, "latent", timesteps=[999, *run])
        theirs = torch.stack([((a - b) ** 2).sum() / a.numel() for a, b in zip(few, many)])
        torch.testing.assert_close(ours.distances(run), theirs, rtol=1e-3, atol=1e-6)
        found[run] = theirs
    assert (found[780, 500, 310, 70] != found[799, 599, 399, 199]).all()
    few, many = (
        by_the_pipeline(pocket_pipeline, digits, "np", **schedule)
        for schedule in ({"timesteps": [999, 780, 500, 310, 70]}, {"num_inference_steps": 20})
    )
    decibels = [10 * math.log10(2**2 / ((a - b) ** 2).mean().item()) for a, b in zip(few, many)]
    assert ours.psnr((780, 500, 310, 70)).tolist() == pytest.approx(decibels, abs=1e-2)


def test_the_uniform_schedule_as_a_list_is_the_uniform_schedule(model, digits):
    ours, indices = distance_of(model, digits), torch.arange(3)
    uniform = CandidateSampler.of(model, HPARAMS)
    assert uniform.executed == (799, 599, 399, 199)
    assert ours.reference_timesteps[:2] == (799, 749) and len(ours.reference_timesteps) == 16
    own = CandidateSampler.of(model, {**HPARAMS, "denoising_timesteps": ours.with_skipped(uniform.executed)})
    assert own.executed == uniform.executed
    a, b = (sampler.latents(digits, LABELS, indices, SEEDS) for sampler in (uniform, own))
    torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert distance_of(model, digits, reference_steps=5).distances(uniform.executed).tolist() == [0, 0, 0]


def test_skipped_entries_are_never_run(model, digits):
    ours = distance_of(model, digits, denoising_steps=10)
    run = (900, 700, 600, 500, 400, 200, 100, 50)
    assert ours.with_skipped(run) == [999, 998, *run]
    indices = torch.arange(3)
    whole, other = (
        CandidateSampler.of(model, {**HPARAMS, "denoising_timesteps": [*skipped, *run]}).latents(
            digits, LABELS, indices, SEEDS
        )
        for skipped in ([999, 998], [950, 901])
    )
    torch.testing.assert_close(whole, other, atol=0, rtol=0)


def test_batches_change_nothing(model, digits):
    run = (780, 500, 310, 70)
    whole = distance_of(model, digits).distances(run)
    alone = distance_of(model, digits, generation_batch=1).distances(run)
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-6)


def test_more_steps_come_nearer(model, digits):
    """What the score takes for granted of the solver."""
    errors = []
    for steps in (5, 10, 20):
        ours = distance_of(model, digits, denoising_steps=steps, reference_steps=80)
        executed = CandidateSampler.of(model, {**HPARAMS, "denoising_steps": steps}).executed
        errors.append(ours.distances(executed).mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_what_is_not_finite(model, digits, monkeypatch):
    ours = distance_of(model, digits)
    predict = model.ldm.predict
    for bad in (math.nan, math.inf):
        monkeypatch.setattr(model.ldm, "predict", lambda *given, bad=bad: predict(*given) + bad)
        assert ours.distances((780, 500, 310, 70)).tolist() == [math.inf] * 3
    with pytest.raises(InputError, match="Candidates of 20 steps are not finite in torch.float32: run the LDM in bfl"):
        distance_of(model, digits)
