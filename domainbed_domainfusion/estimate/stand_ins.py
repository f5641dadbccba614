"""Replacements for data and weights that are not on this machine. Speed does not depend on their content."""

import os
from pathlib import Path
from typing import Any

from ..data.benchmarks import Benchmark
from ..diffusion.source import HUB_ID, resolve_source
from ..errors import InputError

IMAGES = 320  # per environment, so that an out-split is one whole evaluation batch of 64


def has_folder(benchmark: Benchmark, data_dir: str) -> bool:
    return Path(data_dir, benchmark.folder).is_dir()


def write_pictures(benchmark: Benchmark, folder: Path, at_least: int) -> None:
    """Write an image folder in the benchmark's layout: one noise picture of its usual size, hard-linked many times.

    at_least: the least number of images per environment.
    """
    import numpy as np
    from PIL import Image

    width, height = benchmark.picture
    coarse = np.random.RandomState(0).randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    picture = folder / "picture.jpg"
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(picture, quality=90)
    for environment in range(len(benchmark.images)):
        for i in range(max(IMAGES, benchmark.classes, at_least)):
            file = folder / benchmark.folder / f"{environment}" / f"{i % benchmark.classes:03d}" / f"{i:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(picture, file)
    picture.unlink()


def ldm_is_available(hparams: dict[str, Any]) -> bool:
    """Whether the diffusion model is on this machine. The network is not used, because HF_HUB_OFFLINE is set.

    Raises InputError for a local folder that cannot be used.
    """
    source = hparams["ldm"]
    try:
        resolve_source(source, hparams["ldm_revision"])
        return True
    except InputError:
        if HUB_ID.fullmatch(source) and not Path(source).exists():
            return False
        raise
