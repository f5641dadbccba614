"""DomainBed's Spawrious classes, on random images in their folder layout: they are seen like any other dataset."""

import json

import numpy as np
import pytest
from PIL import Image

from .test_train import train

LOCATIONS = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
DOGS = ["bulldog", "corgi", "dachshund", "labrador"]


@pytest.fixture(scope="module")
def folder(attached, tmp_path_factory):
    """A folder beside `data`, which holds {0,1}/<location>/<dog>/<image>: three random images each."""
    attached.add("import tests.upstream.spawrious_probe  # noqa")
    root = tmp_path_factory.mktemp("spawrious")
    random = np.random.RandomState(0)
    for group in "01":
        for location in LOCATIONS:
            for dog in DOGS:
                path = root / "data" / group / location / dog
                path.mkdir(parents=True)
                for i in range(3):
                    Image.fromarray(random.randint(0, 256, (40, 40, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return root


@pytest.mark.parametrize("dataset", ["SpawriousO2O_easy", "SpawriousM2M_medium"])
def test_the_context_is_what_train_does(attached, folder, dataset):
    """Without augmentation, so that an image is equal whenever it is read."""
    job = folder / f"context-{dataset}"
    given = {"data_augmentation": False}
    train(attached, job, "ContextProbe", "--test_envs", 0, "--steps", 2, dataset=dataset, hparams=given)
    seen = json.loads((job / "context.json").read_text())
    assert seen["ours"] == seen["train"]
    assert seen["seen"] > 0 and seen["foreign"] == 0
    assert (seen["class_names"], seen["domain_names"]) == (DOGS, ["SC_group_1", "SC_group_2"])


@pytest.mark.parametrize("dataset", ["SpawriousO2O_hard", "SpawriousM2M_hard"])
def test_domainfusion_generates(attached, folder, dataset):
    job = folder / f"generates-{dataset}"
    given = {"ldm": "pocket", "image_size": 32, "candidates": 1, "generation_interval": 1, "denoising_steps": 2}
    train(attached, job, "DatasetProbe", "--test_envs", 0, "--steps", 1, dataset=dataset, hparams=given)
    (row,) = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
    assert row["generated_images"] > 0 and (job / "done").exists()
    seen = json.loads((job / "dataset.json").read_text())
    assert all(name in prompt for name, prompt in zip(DOGS, seen["prompts"], strict=True))
    assert seen["mean"] == pytest.approx([0.485, 0.456, 0.406]) and seen["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_the_check_knows_it(attached, folder):
    """By DomainBed's own class. The folders are whole, but for the number of images."""
    arguments = ["data", "check", "SpawriousM2M_hard", "--json", "--data_dir", folder / "data"]
    ended = attached.python("domainbed_domainfusion.cli", *arguments, check=False)
    found = json.loads(ended.stdout)
    assert {each["kind"] for each in found["findings"]} == {"published-images"}
    assert found["published"]["1/snow"] == 4 * 3168 and len(found["published"]) == 12
