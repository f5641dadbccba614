"""A tiny random Stable Diffusion folder, made once, and the models read from it."""

import shutil

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from tests.tiny_ldm import make_tiny_autoencoder, make_tiny_stable_diffusion

CLASS_NAMES = ["dog", "cat", "giraffe"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("ldm") / "tiny")


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder, for a test to spoil."""
    return shutil.copytree(folder, tmp_path / "ldm")


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
    """The folder of one like TAESD, but small, with 4 pixels per latent and another scaling factor than the VAE's."""
    return make_tiny_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="session")
def ldm(folder):
    return LatentDiffusion.load(str(folder), device="cpu")


@pytest.fixture(scope="session")
def prompts(ldm):
    return Prompts(ldm, CLASS_NAMES)


@pytest.fixture
def images():
    """(3, 3, 32, 32) in [-1, 1], with structure: noise over a gradient."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 32)[None, None, None]
    return (
        ramp * torch.randn(3, 3, 1, 1, generator=generator) + 0.3 * torch.randn(3, 3, 32, 32, generator=generator)
    ).clamp(-1, 1)


@pytest.fixture
def labels():
    return torch.tensor([2, 0, 1])


@pytest.fixture(scope="module")
def pipeline(folder):
    return diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
