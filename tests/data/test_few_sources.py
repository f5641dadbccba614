"""Training on one environment of three, as a user runs it, and what the report says of it."""

import numpy as np
import pytest
from PIL import Image

from domainbed_domainfusion.data import own_datasets
from domainbed_domainfusion.hosting import host

from .. import forks

HPARAMS = """{"batch_size": 4, "backbone": "mnist_cnn", "ldm": "pocket", "candidates": 1, "denoising_steps": 2,
              "generation_budget": 4, "gallery": 1}"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The data folder of a dataset `Mine` with the environments k, l and m."""
    rng = np.random.default_rng(0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(36):
        folder = tmp_path / "data" / "pictures" / "klm"[number % 3] / ("ant", "bee")[number // 3 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    described = own_datasets.describe(
        "Mine", tmp_path / "data" / "pictures", tmp_path / "data", image_size=32, workers=0
    )
    own_datasets.add(described, tmp_path / "data")
    return tmp_path / "data"


def run(*arguments) -> str:
    ended = forks.run(*map(str, arguments))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_domainfusion_from_train_to_report(data, tmp_path):
    train = ["--algorithm", "DomainFusion", "--dataset", "Mine", "--data_dir", data, "--test_envs", 0, 2]
    train += ["--steps", 2, "--hparams", HPARAMS, "--output_dir", tmp_path / "runs" / "first"]
    run(f"{host.EMBEDDED}.scripts.train", *train)
    assert (tmp_path / "runs" / "first" / "done").exists()
    report = ["report", "--input_dir", tmp_path / "runs", "--output", tmp_path / "report.html"]
    run("domainbed_domainfusion.cli", *report)
    (line,) = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| l |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "DomainFusion" and [cell == "–" for cell in cells[2:]] == [False, True, False, False]
