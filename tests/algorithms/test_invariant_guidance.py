"""DomainFusion with invariant guidance: what it learns on, what it changes, and what it cannot stand beside."""

import pytest
import torch

from domainbed_domainfusion.algorithms import domain_models
from domainbed_domainfusion.diffusion import fine_tuning, invariant_guidance
from domainbed_domainfusion.diffusion.invariant_guidance import InvariantGuidance
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context

from ..conftest import WiredDigits

GUIDED = {"invariant_steps": 2, "invariant_batch": 3, "invariant_lr": 1e-2}
FAST = {"denoising_steps": 2, "generation_interval": 1, "ld_images": 2, "gallery": 0}


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda **hparams: host_run("DomainFusion", **{"ldm": tiny_ldm, **FAST, **GUIDED, **hparams})


def losses(r, steps=6):
    return [row["loss"] for row in r.update(steps)]


def test_it_guides_candidates_and_not_latent_distillation(run):
    r = run()
    r.update(1)
    algorithm = r.algorithm
    assert isinstance(algorithm.generation.sampler.ldm._unet, InvariantGuidance)
    assert algorithm.distillation.ldm._unet is algorithm.generation.sampler.ldm._unet.frozen


def test_it_learns_on_the_in_splits_alone(run):
    r = run(dataset=WiredDigits, test_env=1, invariant_batch=40, lambda3=0.0)
    r.algorithm.load_diffusion(torch.device("cpu"))
    for i, environment in enumerate(r.dataset.datasets):
        assert environment.read <= set(r.in_splits[i].keys) and bool(environment.read) == (i != 1)


def test_nothing_is_learned_for_a_run_that_generates_nothing(run, monkeypatch):
    monkeypatch.setattr(invariant_guidance, "fine_tuned", lambda *_, **__: pytest.fail("trained"))
    run(lambda3=0.0, ld_input="raw").update(1)


def test_a_picture_is_the_raw_image_with_its_label(run):
    r = run()
    split = r.context.in_splits[1]
    pictures = domain_models.pictures_of(split, 32, with_labels=True)
    assert pictures.number == len(r.in_splits[2])
    for i in (0, 5):
        image, label = pictures.item(i)
        raw, expected = r.dataset[2][split.keys[i]]
        torch.testing.assert_close((image + 1) / 2, raw, rtol=0, atol=0.51 / 255)
        assert label == expected


def test_every_hparam_matters_and_a_run_is_repeated_bit_for_bit(run):
    """Also a run that is taken up: it learns the second U-Net again."""
    first = losses(run())
    assert first == losses(run())
    others = [
        {"invariant_steps": 0},
        {"invariant_steps": 3},
        {"invariant_share": 0.1},
        {"invariant_weight": 100.0},
        {"invariant_lr": 2e-2},
        {"invariant_batch": 4},
    ]
    assert all(losses(run(**other)) != first for other in others)


def test_the_seed_of_the_run_decides(run, monkeypatch):
    given = []
    monkeypatch.setattr(
        invariant_guidance, "fine_tuned", lambda ldm, *_, identity, network, **__: given.append(identity) or ldm
    )
    for seed in (0, 5):
        monkeypatch.setattr(context.TrainingContext, "seed", seed)
        with pytest.raises(InputError):  # the model stays as it is
            run().algorithm.load_diffusion(torch.device("cpu"))
    assert given == [(0, "invariant guidance"), (5, "invariant guidance")]


@pytest.mark.parametrize(
    "other, message",
    [
        (
            {"candidate_cache": "cache"},
            "a diffusion model of this run alone, which candidate_cache cannot use: turn one",
        ),
        ({"generation_devices": ["cpu", "cpu"]}, "which generation_devices cannot use: turn one of them off"),
        ({"ldm_compile": True}, "which ldm_compile cannot use: turn one of them off"),
        (
            {"reuse_interval": 2},
            "reuse_interval runs parts of one U-Net, and invariant_steps adds another: set it to 1",
        ),
    ],
)
def test_what_it_cannot_stand_beside(run, other, message):
    with pytest.raises(InputError, match=message):
        run(**other)
    run(**other, invariant_steps=0)


def test_too_little_memory_is_said_before_training(run, monkeypatch):
    monkeypatch.setattr(fine_tuning, "free_memory", lambda device: 2**20)
    with pytest.raises(
        InputError, match=r"Fine-tuning a U-Net of [\d,]+ weights takes .* set invariant_steps to 0, or"
    ):
        run()
