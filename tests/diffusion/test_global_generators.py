"""Loading φ draws nothing from the run's global random generators, though the diffusion library may.

Older versions of diffusers initialise the networks at random before they read the weights.
"""

import random

import numpy as np
import pytest
import torch

from domainbed_domainfusion.diffusion import loading
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.random_model import write_random_model


def draw() -> list[float]:
    """One number from each global generator of a machine without a GPU."""
    return [
        random.random(),
        np.random.rand(),
        torch.rand((), device="cpu").item(),
    ]  # also where torch.device("meta") is set


@pytest.fixture
def library_draws(monkeypatch):
    """A diffusion library that draws whenever a network is built; gives the names of the loaders that ran."""
    ran = []

    def drawing(name):
        load = getattr(loading, name)

        def loader(*arguments):
            ran.append(name)
            draw()
            return load(*arguments)

        return loader

    for name in ("unet_and_vae", "text_encoder"):
        monkeypatch.setattr(loading, name, drawing(name))
    monkeypatch.setattr("domainbed_domainfusion.diffusion.model._loaded", {})
    return ran


def seeded() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


def test_loading_leaves_the_global_generators_alone(folder, library_draws):
    seeded()
    expected = draw()
    seeded()
    ldm = LatentDiffusion.load(str(folder), device="cpu")
    assert draw() == expected
    seeded()
    ldm.embed(["a dog"])  # reads the text encoder
    assert draw() == expected
    assert library_draws == ["unet_and_vae", "text_encoder"]


def test_writing_a_random_model_leaves_them_alone_too(tmp_path, monkeypatch):
    from diffusers import UNet2DConditionModel

    build = UNet2DConditionModel.from_config
    monkeypatch.setattr(UNet2DConditionModel, "from_config", lambda *arguments: (draw(), build(*arguments))[1])
    seeded()
    expected = draw()
    seeded()
    write_random_model(tmp_path / "full")
    assert draw() == expected
