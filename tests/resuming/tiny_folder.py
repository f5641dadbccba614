"""A dataset of 36 small images in folders: the host's own loaders with workers and random transforms, in seconds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAME, ENVIRONMENTS, CLASSES, IMAGES = "TinyFolder", ("east", "north", "west"), ("cat", "dog"), 6
#: A batch of four makes epochs of two and a half steps. Twelve steps have four rounds and five rows.
ARGUMENTS = ("--dataset", NAME, "--steps", "12", "--checkpoint_freq", "3", "--save_model_every_checkpoint")
HPARAMS = {"batch_size": 4, "backbone": "mnist_cnn"}
GENERATING = {
    **HPARAMS,
    "ldm": "pocket",
    "image_size": 32,
    "generation_budget": 8,
    "generation_interval": 1,
    "generation_batch": 3,
    "candidates": 2,
    "denoising_steps": 2,
    "lambda2": 0.5,
    "ld_when": "generation",
    "gallery": 1,
}


def write(data_dir: Path, workers: int = 2, checkpoint_freq: int = 3) -> None:
    """Write the images and their dataset.json below `data_dir`."""
    random = np.random.RandomState(0)
    for environment in ENVIRONMENTS:
        for label, name in enumerate(CLASSES):
            folder = data_dir / "tiny" / environment / name
            folder.mkdir(parents=True)
            for i in range(IMAGES):
                pixels = random.randint(0, 200, (40, 40, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    description = {
        "name": NAME,
        "folder": "../tiny",
        "environments": list(ENVIRONMENTS),
        "class_names": list(CLASSES),
        "image_size": 16,
        "steps": 12,
        "checkpoint_freq": checkpoint_freq,
        "workers": workers,
    }
    (data_dir / NAME).mkdir()
    (data_dir / NAME / "dataset.json").write_text(json.dumps(description))


def train_arguments(data_dir: Path, job: Path, algorithm: str, **hparams) -> list[str]:
    """The arguments of the host's train script."""
    values = {**(GENERATING if algorithm == "DomainFusion" else HPARAMS), **hparams}
    places = ["--data_dir", str(data_dir), "--output_dir", str(job), "--algorithm", algorithm]
    return [*ARGUMENTS, *places, "--hparams", json.dumps(values)]
