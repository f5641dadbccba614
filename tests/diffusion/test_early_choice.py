"""Candidates that are begun, and finished if they are chosen: against diffusers' steps and the full candidates."""

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.errors import InputError

from .pipelines import SEEDS, reference


def test_begun_candidates_are_the_pipelines_after_so_many_steps(ldm, prompts, pipeline, images, labels, monkeypatch):
    recorded, step = [], diffusers.DDIMScheduler.step

    def watched(self, *given, **options):
        made = step(self, *given, **{**options, "return_dict": True})
        recorded.append((made.prev_sample[0], made.pred_original_sample[0]))
        return made if options.get("return_dict", True) else (made.prev_sample,)

    begun = CandidateSampler(ldm, prompts, 8).begin(images, labels, SEEDS, 3)
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", watched)
    reference(
        pipeline,
        "ddim",
        images[1],
        "a photo of a dog",
        SEEDS[1][1],
        "latent",
        num_inference_steps=8,
        strength=0.8,
        guidance_scale=7.5,
    )
    assert len(recorded) == 6 and begun.steps == 3
    latents, preview = recorded[2]
    assert (begun.latents[3] - latents).abs().max() < 2e-5
    assert (begun.previews[3] - preview).abs().max() < 2e-5
    assert (begun.previews - begun.latents).abs().max() > 1e-2


@pytest.mark.parametrize("interval", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_finished_candidates_are_those_in_full(ldm, prompts, images, labels, interval, batch_size):
    """Guidance ends after, at and before the pause."""
    sampler = CandidateSampler(ldm, prompts, 8, guidance_interval=interval, batch_size=batch_size)
    whole = sampler.sample(images, labels, SEEDS).latents.flatten(0, 1)
    rows = torch.tensor([4, 0, 1])
    for steps in (1, 3, 5):
        finished = sampler.finish(sampler.begin(images, labels, SEEDS, steps), rows)
        torch.testing.assert_close(finished, whole[rows], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "steps, options, sentence",
    [
        (2, {"scheduler": "dpmsolver++"}, "which scheduler dpmsolver\\+\\+ cannot"),
        (2, {"guidance_agreement": 0.9}, "which guidance_agreement cannot"),
        (6, {}, "early_choice is 6, but strength runs 6 of the denoising_steps: give a number from 1 to 5, or null"),
        (0, {}, "early_choice is 0"),
    ],
)
def test_where_it_cannot_stop(ldm, prompts, steps, options, sentence):
    with pytest.raises(InputError, match=sentence):
        CandidateSampler(ldm, prompts, 8, **options).check_early(steps)
