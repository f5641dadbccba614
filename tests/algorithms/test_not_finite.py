"""LD values that are not finite: they are dropped, counted and printed once, and too many of them stop the run."""

import pytest
import torch

from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.errors import InputError

FAST = {"denoising_steps": 2, "generation_interval": 1, "gallery": 0, "lambda3": 0.0, "ld_input": "raw"}


@pytest.fixture
def broken(monkeypatch, host_run, tiny_ldm):
    """A run whose LD returns `bad` for the first `images` images of every step from `step` on."""

    def make(images: int, bad: tuple[float, float], step: int = 0, **hparams):
        coefficients, calls = LatentDistillation.coefficients, []

        def some_bad(self, *arguments):
            value, a = coefficients(self, *arguments)
            if len(calls) >= step:
                value[:images], a[:images] = bad
            calls.append(len(value))
            return value, a

        monkeypatch.setattr(LatentDistillation, "coefficients", some_bad)
        return host_run("DomainFusion", ldm=tiny_ldm, **FAST, **hparams)

    return make


@pytest.mark.parametrize("bad", [(float("inf"), 1.0), (1.0, float("nan")), (float("nan"), float("inf"))])
def test_the_rest_of_the_minibatch_is_learned_from(broken, bad, capsys):
    """With one bad image of eight, the gradient is that of the mean over the other seven."""
    run = broken(1, bad, lambda1=0.0, lambda2=5.0, weight_decay=0.0)
    (values,) = run.update(1)
    assert values["ld_not_finite"] == 1.0 and all(torch.tensor(list(values.values())).isfinite())
    assert all(weight.isfinite().all() for weight in run.algorithm.parameters())
    assert any(weight.grad.abs().max() > 0 for weight in run.algorithm.parameters())
    run.update(2)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "not finite" in line] == [
        "At step 0 Latent Distillation is not finite for 1 of 8 images: they are left out of its loss, here and later; "
        "ld_not_finite in the results counts them."
    ]


def test_a_finite_run_is_not_changed_and_counts_none(broken, host_run, tiny_ldm):
    run = broken(0, (float("nan"), float("nan")))
    assert [values["ld_not_finite"] for values in run.update(3)] == [0.0] * 3


def test_a_step_without_any_finite_value_has_no_ld(broken):
    run = broken(8, (float("nan"), float("nan")), lambda1=1.0)
    (values,) = run.update(1)
    assert values["ld_loss"] == values["ld_coefficient"] == 0.0 and values["ld_not_finite"] == 8.0
    assert all(weight.isfinite().all() for weight in run.algorithm.parameters())


def test_too_many_stop_the_run_with_the_remedy(broken):
    run = broken(8, (float("inf"), float("inf")), step=2)
    run.update(3)
    with pytest.raises(InputError) as error:
        run.update(1)
    assert str(error.value) == (
        "Latent Distillation is not finite for 16 of 32 images in float32: set the hparam ldm_dtype to "
        '"bfloat16" or "float32".'
    )
