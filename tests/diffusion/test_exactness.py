"""How close LD's gradient is to float64 autograd, in every precision that runs it: printed with `pytest -s`.

Autograd here is our own reverse mode in float64, which test_distillation holds against Algorithm 2 written out.
"""

from functools import lru_cache

import pytest
import torch

from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.pocket import LDM_FOLDER

# Near confidence 0 the image has hardly any contrast, and random weights magnify the rounding errors of 16 bits.
IMAGES, LEAST_CONFIDENCE = {"tiny": 96, "pocket": 16}, {"tiny": 0.05, "pocket": 0.0}
NAMES = ["zero", "one", "two"]


@pytest.fixture(scope="module", params=["tiny", "pocket"])
def source(request, folder):
    return str(folder) if request.param == "tiny" else LDM_FOLDER


@lru_cache
def coefficients(source, dtype, gradient, gradient_mode):
    """LD's coefficients of many images. Each is noise over a gradient and has its own confidence, t and ε."""
    size = "pocket" if source == LDM_FOLDER else "tiny"
    count, least = IMAGES[size], LEAST_CONFIDENCE[size]
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 32) * torch.randn(count, 3, 1, 1, generator=generator)
    images = (ramp + 0.3 * torch.randn(count, 3, 32, 32, generator=generator)).clamp(-1, 1)
    confidence = least + (1 - least) * torch.rand(count, generator=generator)
    ldm = LatentDiffusion.load(source, device="cpu", dtype=dtype)
    ours = LatentDistillation(ldm, Prompts(ldm, NAMES), gradient=gradient, gradient_mode=gradient_mode)
    return ours.coefficients(images, torch.arange(count) % len(NAMES), confidence, list(range(count)))


def error_and_cosine(source, dtype, gradient, gradient_mode):
    value, slope = coefficients(source, dtype, gradient, gradient_mode)
    assert value.dtype == slope.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    values, slopes = coefficients(source, "float64", gradient, "reverse")
    error = ((slope - slopes).norm() / slopes.norm()).item()
    cosine = torch.cosine_similarity(slope.double(), slopes, dim=0).item()
    print(f"{gradient} {gradient_mode} {dtype}: relative error {error:.1e}, cosine {cosine:.5f}")
    return error, cosine, ((value - values).norm() / values.norm()).item()


@pytest.mark.parametrize("gradient_mode", ["forward", "reverse"])
@pytest.mark.parametrize("gradient", ["full", "sds"])
def test_float32(source, gradient, gradient_mode):
    error, _, value_error = error_and_cosine(source, "float32", gradient, gradient_mode)
    assert error < 1e-4 and value_error < 1e-5


@pytest.mark.parametrize("gradient", ["full", "sds"])
def test_forward_mode_is_exact(source, gradient):
    assert error_and_cosine(source, "float64", gradient, "forward")[0] < 1e-12


@pytest.mark.parametrize("gradient_mode", ["forward", "reverse"])
@pytest.mark.parametrize("gradient", ["full", "sds"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(source, dtype, gradient, gradient_mode):
    _, cosine, value_error = error_and_cosine(source, dtype, gradient, gradient_mode)
    assert cosine > 0.998 and value_error < 1e-2
