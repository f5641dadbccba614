"""The calibration times the parts of a run: parts that are slowed down by sleeping take at least that time."""

import time

import pytest
import torch
from PIL import Image

from domainbed_domainfusion.data import own_datasets
from domainbed_domainfusion.estimate import measure
from domainbed_domainfusion.hosting import host


def test_a_slow_algorithm_is_measured_as_slow(monkeypatch, spec):
    """A step sleeps 30 ms, an evaluated image 1 ms. These are lower bounds."""

    class Slow(host.algorithms.ERM):
        def update(self, minibatches, unlabeled=None):
            time.sleep(0.03)
            return super().update(minibatches, unlabeled)

        def predict(self, x):
            time.sleep(0 if self.training else 0.001 * len(x))
            return super().predict(x)

    monkeypatch.setattr(host.algorithms, "Slow", Slow, raising=False)
    measured = measure.Calibration({**spec, "algorithm": "Slow"}).measure()
    assert measured["step"] >= 0.03 and measured["evaluated"] >= 0.001
    assert measured["model_bytes"] > 4 * sum(p.numel() for p in Slow((3, 32, 32), 4, 2, spec["hparams"]).parameters())


def test_minibatches_that_wait_in_loader_processes(monkeypatch, spec):
    """By hand: in-splits of 16, 17 and 18 images and out-splits of 4. Each is smaller than an evaluation batch."""
    monkeypatch.setattr(host.datasets.TinyDigits, "N_WORKERS", 2)
    loader = torch.utils.data.DataLoader([0], num_workers=1)
    images = 2 * 4 + (16 + 17 + 18) + 3 * 4
    result = measure.Calibration(spec).result
    assert result["loader_processes"] == 2 * (2 + 6)
    assert result["prefetched_bytes"] == loader.prefetch_factor * 2 * images * 3 * 32 * 32 * 4


def test_a_described_dataset_is_known_by_its_data_folder_alone(monkeypatch, spec, tmp_path):
    """The calibration is a process of its own, whose command line has the data folder inside its specification."""
    for number in range(40):
        folder = tmp_path / "pictures" / "ab"[number % 2] / "xy"[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(host.datasets, "DATASETS", list(host.datasets.DATASETS))
    own_datasets.add(own_datasets.describe("Mine", tmp_path / "pictures", tmp_path, image_size=32, workers=0), tmp_path)
    assert not hasattr(host.datasets, "Mine")
    try:
        measured = measure.Calibration({**spec, "dataset": "Mine", "data_dir": str(tmp_path)}).measure()
    finally:
        vars(host.datasets).pop("Mine", None)
    assert measured["step"] > 0


def test_generation_and_ld_are_measured_by_the_run_itself(monkeypatch, spec, tiny_ldm):
    """A candidate sleeps 5 ms, so an image with three takes 15 ms. LD sleeps 3 ms per image and draw."""
    from domainbed_domainfusion.diffusion.candidates import CandidateSampler
    from domainbed_domainfusion.diffusion.distillation import LatentDistillation

    sample, coefficients = CandidateSampler.sample, LatentDistillation.coefficients

    def slow_sample(self, images, labels, seeds):
        time.sleep(0.005 * len(images) * len(seeds[0]))
        return sample(self, images, labels, seeds)

    def slow_coefficients(self, images, *arguments):
        time.sleep(0.003 * len(images) * self.draws)
        return coefficients(self, images, *arguments)

    monkeypatch.setattr(CandidateSampler, "sample", slow_sample)
    monkeypatch.setattr(LatentDistillation, "coefficients", slow_coefficients)
    hparams = {
        **host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"),
        "ldm": tiny_ldm,
        "batch_size": 4,
        "backbone": "mnist_cnn",
        "candidates": 3,
        "lambda2": 0.5,
        "denoising_steps": 2,
        "ld_draws": 2,
        "generation_batch": 4,
    }
    monkeypatch.setattr(measure, "ENCODED", 0.02)  # seconds: a few images of the tiny model, not hundreds
    for slow_encode in (measure.SLOW_ENCODE, 0.0):  # whole batches, and few images extrapolated
        monkeypatch.setattr(measure, "SLOW_ENCODE", slow_encode)
        measured = measure.Calibration({**spec, "algorithm": "DomainFusion", "hparams": dict(hparams)}).measure()
        assert (measured["few_images"] > 0) == (slow_encode == 0)
        assert measured["kept"] >= 0.015 and measured["ld_gradient"] >= 0.003


@pytest.mark.parametrize("seconds, expected", [((0.5, 0.8), 0.2 + 8 * 0.3), ((0.5, 0.4), 0.2), ((0.1, 0.2), 0.0)])
def test_a_hiccup_makes_no_time_negative(monkeypatch, spec, tiny_ldm, seconds, expected):
    """seconds: for one candidate at one and at two steps, 0.3 s for encoding included. The run takes nine steps."""
    hparams = {
        **host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"),
        "ldm": tiny_ldm,
        "backbone": "mnist_cnn",
        "batch_size": 4,
        "guidance_scale": 1.0,
        "denoising_steps": 12,
        "strength": 0.8,
    }
    run = measure.Calibration({**spec, "algorithm": "DomainFusion", "hparams": hparams})
    run.algorithm.load_diffusion(run.device)
    taken = list(seconds)
    monkeypatch.setattr(run, "_seconds", lambda call: taken.pop(0))
    found = run._candidate(hparams, torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), 0.3, 1)
    assert found == pytest.approx(expected)


def test_udims_phases_are_measured_apart(monkeypatch, spec):
    """A step of the second phase is made slow."""
    udim = host.algorithms.UDIM
    unknown_domain = udim.unknown_domain

    def slow(self, *arguments):
        time.sleep(0.2)
        return unknown_domain(self, *arguments)

    monkeypatch.setattr(udim, "unknown_domain", slow)
    hparams = {**host.hparams_registry.default_hparams("UDIM", "Debug28"), **spec["hparams"]}
    measured = measure.Calibration({**spec, "algorithm": "UDIM", "hparams": hparams}).measure()
    assert measured["step"] - measured["raw_step"] > 0.15


def test_cdgas_versions_are_measured(monkeypatch, spec, tiny_ldm):
    """A candidate sleeps 5 ms. The set of one guide is measured per image."""
    from domainbed_domainfusion.diffusion.candidates import CandidateSampler

    sample = CandidateSampler.sample

    def slow(self, images, labels, seeds):
        time.sleep(0.005 * len(images))
        return sample(self, images, labels, seeds)

    monkeypatch.setattr(CandidateSampler, "sample", slow)
    words = {"Y": "a photo", "Z": "a sketch"}
    hparams = {**host.hparams_registry.default_hparams("CDGA", "DigitStyles"), **spec["hparams"], "ldm": tiny_ldm}
    hparams = {**hparams, "cdga_descriptions": words, "denoising_steps": 2}
    measured = measure.Calibration({**spec, "algorithm": "CDGA", "hparams": hparams}).measure()
    assert 0.005 <= measured["kept"] < 0.2 and measured["step"] > 0 and measured["load"] > 0
