"""The diffusion models of the benchmarks, each a folder in the format of Stable Diffusion 1.x.

    tiny    random weights, 0.3 MB; 32x32 images; for the benchmarks' own tests
    pocket  the embedded model; 32x32
    sd1     the full-size architecture (U-Net 860 M, VAE 84 M) with random weights and a small text encoder; 320x320

Random models are written to the system's temporary folder (1.9 GB for sd1, in float16) and deleted afterwards. Speed
does not depend on a network's weights.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.hosting import hparams as table
from domainbed_domainfusion.pocket import CLASS_NAMES, LDM_FOLDER
from domainbed_domainfusion.seeding import generator_of

MODELS = ("tiny", "pocket", "sd1")


@dataclass(frozen=True)
class Model:
    """A model's folder, its image size, and the dataset for which the hparams' defaults are taken."""

    name: str
    folder: str
    image_size: int
    dataset: str
    class_names = list(CLASS_NAMES)

    def load(self, device: str, dtype: str) -> tuple[LatentDiffusion, Prompts]:
        """The model on the device and its embedded prompts. The text encoder is dropped from memory."""
        ldm = LatentDiffusion.load(self.folder, device=device, dtype=dtype)
        prompts = Prompts(ldm, self.class_names)
        ldm.drop_text_encoder()
        return ldm, prompts

    def hparams(self) -> dict[str, Any]:
        """DomainFusion's defaults, as shipped, on the model's dataset."""
        return {**table.added_defaults("DomainFusion", self.dataset), "ldm": self.folder}

    def images(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Smooth random images (count, 3, S, S) in [-1, 1] and labels (count,), the same for each seed."""
        generator = generator_of("benchmark", seed)
        coarse = torch.randn(count, 3, 8, 8, generator=generator)
        images = torch.nn.functional.interpolate(coarse, size=(self.image_size,) * 2, mode="bicubic").clamp(-1, 1)
        return images, torch.arange(count) % len(self.class_names)


@contextmanager
def opened(name: str) -> Iterator[Model]:
    """The model with this name. A random model's folder exists only inside the block."""
    if name == "pocket":
        yield Model(name, str(LDM_FOLDER), 32, "DigitStyles")
        return
    from tests.tiny_ldm import make_tiny_stable_diffusion

    with tempfile.TemporaryDirectory(prefix=f"benchmark-{name}-") as scratch:
        folder = Path(scratch) / name
        if name == "tiny":
            make_tiny_stable_diffusion(folder)
            yield Model(name, str(folder), 32, "DigitStyles")
        else:
            make_tiny_stable_diffusion(folder, size="full", dtype=torch.float16)
            yield Model(name, str(folder), 320, "PACS")
