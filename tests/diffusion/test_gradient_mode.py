"""Latent Distillation's modes of differentiation: what "auto" settles on, and what is done where one cannot go on."""

import warnings

import pytest
import torch

from domainbed_domainfusion.diffusion import distillation, forward_mode
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.errors import InputError

CONFIDENCE = torch.tensor([0.3, 0.75, 0.99])
SEEDS = [11, 12, 13]


@pytest.fixture
def without_silu(monkeypatch):
    """An LDM with an operation that has no forward-mode rule."""
    monkeypatch.delitem(forward_mode.RULES, "silu")


def test_an_operation_without_a_rule_is_named_with_the_remedy(ldm, prompts, images, labels, without_silu):
    with pytest.raises(InputError) as error:
        LatentDistillation(ldm, prompts, gradient_mode="forward").coefficients(images, labels, CONFIDENCE, SEEDS)
    assert str(error.value) == (
        "Forward-mode differentiation has no rule for silu: use the reverse gradient mode, or "
        "add a rule to diffusion/forward_mode.py."
    )


def test_auto_goes_on_in_reverse_and_says_so_once(ldm, prompts, images, labels, without_silu):
    expected = LatentDistillation(ldm, prompts, gradient_mode="reverse").coefficients(images, labels, CONFIDENCE, SEEDS)
    ours = LatentDistillation(ldm, prompts)
    with pytest.warns(UserWarning, match="no rule for silu.* LD goes on in reverse mode."):
        value, slope = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    assert torch.equal(value, expected[0]) and torch.equal(slope, expected[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.coefficients(images, labels, CONFIDENCE, SEEDS)


@pytest.fixture
def timed_device(monkeypatch):
    """Let "auto" time the modes on the CPU too; the stopwatch returns these seconds, forward mode's first."""
    seconds = []

    class Stopwatch:
        def __init__(self, device):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.seconds = seconds.pop(0)

    monkeypatch.setattr(distillation, "TIMED_DEVICES", ("cpu",))
    monkeypatch.setattr(distillation, "Stopwatch", Stopwatch)
    return seconds


@pytest.mark.parametrize("reverse, settled", [(0.8, "reverse"), (0.95, "forward"), (2.0, "forward")])
def test_auto_settles_on_the_faster_mode_of_a_gpu_once(ldm, prompts, images, labels, timed_device, reverse, settled):
    timed_device += [1.0, reverse]
    ours, forward = LatentDistillation(ldm, prompts), LatentDistillation(ldm, prompts, gradient_mode="forward")
    first = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    assert torch.equal(first[1], forward.coefficients(images, labels, CONFIDENCE, SEEDS)[1])
    assert ours.gradient_mode == settled and not timed_device
    expected = LatentDistillation(ldm, prompts, gradient_mode=settled).coefficients(images, labels, CONFIDENCE, SEEDS)
    assert torch.equal(ours.coefficients(images, labels, CONFIDENCE, SEEDS)[1], expected[1])


def test_auto_stays_forward_where_reverse_does_not_fit(ldm, prompts, images, labels, timed_device, monkeypatch):
    timed_device += [1.0]
    monkeypatch.setattr(LatentDistillation, "_reverse", out_of_memory)
    ours = LatentDistillation(ldm, prompts)
    for _ in range(2):
        ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    assert ours.gradient_mode == "forward"


def out_of_memory(*arguments):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_out_of_memory_halves_the_micro_batch(ldm, prompts, images, labels, monkeypatch):
    ours = LatentDistillation(ldm, prompts)
    expected = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    encode, seen = ldm.encode, []

    def one_at_a_time(images):
        seen.append(images.shape[0])
        if images.shape[0] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return encode(images)

    monkeypatch.setattr(ldm, "encode", one_at_a_time)
    for _ in range(2):
        value, slope = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
        assert torch.allclose(value, expected[0], rtol=1e-5) and torch.allclose(slope, expected[1], rtol=1e-3)
    assert seen == [3, 1, 1, 1, 1, 1, 1]  # a size that did not fit is not tried again
