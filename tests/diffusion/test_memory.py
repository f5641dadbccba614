"""The size of a micro-batch: the measured peak against tensors of known size, and the items that fit."""

from pathlib import Path

import pytest
import torch

from domainbed_domainfusion.diffusion import memory
from domainbed_domainfusion.diffusion.distillation import LatentDistillation

CPU = torch.device("cpu")
KB = torch.empty(256)  # made before: never counted


def chain():
    """Three live at most: the first is freed before the last is made."""
    a = KB + 1
    b = a + 1
    c = a + b
    del a
    return c + b


def in_place():
    a = KB + 1
    a += 1
    torch.add(a, 1, out=a)
    return a.view(16, 16).t()[3:]


def with_a_tape():
    x = torch.ones(256, requires_grad=True)
    y = x.exp().exp().exp()  # each result is kept for the reverse pass
    return y.sum().detach()


@pytest.mark.parametrize(
    "run, kilobytes",
    [
        (chain, 3),
        (in_place, 1),
        (lambda: KB.view(16, 16).t(), 0),
        (lambda: [KB + 1 for _ in range(5)], 5),
        (lambda: [(KB + 1).sum() for _ in range(5)], 1),
        (with_a_tape, 4),
    ],
)
def test_the_peak_of_known_tensors(run, kilobytes):
    assert abs(memory.peak(run, CPU) - kilobytes * 1024) < 100  # a sum's result has a few bytes


@pytest.mark.parametrize("limit, expected", [("5000000", 4000000), ("max", 3072000000), ("9000000000", 3072000000)])
def test_free_memory_within_a_containers_limit(tmp_path, monkeypatch, limit, expected):
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable: 3000000 kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "Path", lambda *parts: tmp_path / Path(*parts).name)
    assert memory.free_memory(CPU) == expected
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory(CPU) is None


def test_as_many_as_fit(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 100 * 1024)
    assert memory.items_that_fit(lambda: KB + 1, CPU) == 50
    assert memory.items_that_fit(lambda: [KB + 1 for _ in range(60)], CPU) == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert memory.items_that_fit(lambda: KB + 1, CPU) is None


@pytest.mark.parametrize("gradient_mode", ["forward", "reverse"])
def test_ld_finds_its_micro_batch_once(ldm, prompts, images, labels, monkeypatch, gradient_mode):
    confidence, seeds = torch.tensor([0.3, 0.75, 0.99]), [11, 12, 13]
    expected = LatentDistillation(ldm, prompts, micro_batch=3, gradient_mode=gradient_mode).coefficients(
        images, labels, confidence, seeds
    )
    ours = LatentDistillation(ldm, prompts, gradient_mode=gradient_mode)
    one = memory.peak(lambda: ours.coefficients(images[:1], labels[:1], confidence[:1], seeds[:1]), CPU)
    three = memory.peak(lambda: ours.coefficients(images, labels, confidence, seeds), CPU)
    assert 2 * one < three < 3.2 * one  # memory grows with the number of images
    ours.micro_batch, sizes, encode = None, [], ldm.encode
    monkeypatch.setattr(memory, "free_memory", lambda device: int(2.5 * one / memory.SHARE["cpu"]))
    monkeypatch.setattr(ldm, "encode", lambda images: sizes.append(images.shape[0]) or encode(images))
    for _ in range(2):
        value, slope = ours.coefficients(images, labels, confidence, seeds)
        assert torch.allclose(value, expected[0], rtol=1e-5) and torch.allclose(slope, expected[1], rtol=1e-3)
    assert ours.micro_batch == 2 and sizes == [1, 2, 1, 2, 1]
