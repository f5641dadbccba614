"""`benchmarks.ld_encoder`: the errors, the distilled encoder, and both of its forms."""

import json
import sys
from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch

from benchmarks import ld_encoder, models
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.pocket import digit_styles


def test_the_errors_are_numpys():
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(6, 3, generator=generator)
    ours = theirs + 0.3 * torch.randn(6, 3, generator=generator)
    a, b = theirs.double().numpy(), ours.double().numpy()
    cosine, same, error = ld_encoder.compared_with(theirs, ours)
    assert cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    assert same == pytest.approx(np.mean(np.sign(a) == np.sign(b))) and 0.5 < same < 1
    assert error == pytest.approx(np.sqrt(((a - b) ** 2).mean() / a.var(0, ddof=1).mean()))
    assert ld_encoder.compared_with(theirs, theirs) == pytest.approx((1, 1, 0))


def measured(monkeypatch, output, *more) -> dict:
    monkeypatch.setattr(ld_encoder, "PRESETS", ("score",))
    monkeypatch.setattr(ld_encoder, "ROUNDS", 1)
    words = ["ld_encoder", "--output", str(output), "--images", "6", "--sets", "2", *more]
    monkeypatch.setattr(sys, "argv", words)
    assert ld_encoder.main() == 0
    return json.loads(output.read_text())


def test_a_longer_distillation_makes_smaller_errors(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(digit_styles, "PER_CLASS", 8)
    monkeypatch.setattr(ld_encoder, "DISTILLED_BATCH", 12)
    found = []
    for steps in (1, 60):
        more = ["--data_dir", str(tmp_path), "--distil_steps", str(steps)]
        result = measured(monkeypatch, tmp_path / "encoder.json", *more)
        assert [row["reading"] for table in result["tables"] for row in table] == ["score", "score"]
        found.append((float(result["notes"][1].split()[-1][:-1]), float(result["tables"][0][0]["cosine"])))
    (before, cosine_before), (after, cosine_after) = found
    assert after < before / 2 and cosine_after > max(0.5, cosine_before)


def test_an_encoder_that_is_given_is_the_one_that_is_measured(monkeypatch, tmp_path, capsys):
    """With an encoder that ignores the image there is no gradient at all."""
    monkeypatch.setattr(digit_styles, "PER_CLASS", 4)
    flat = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(2, 2, 2), decoder_block_out_channels=(1, 1, 1),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    for parameter in flat.parameters():
        parameter.data.zero_()
    flat.save_pretrained(tmp_path / "flat")
    more = ["--data_dir", str(tmp_path), "--encoder", str(tmp_path / "flat")]
    result = measured(monkeypatch, tmp_path / "encoder.json", *more)
    assert "Latents: relative error 1.000." in result["notes"]
    assert result["tables"][0][0]["cosine"] == "0.000" and result["tables"][0][0]["same sign"] == "0 %"


def test_the_full_size_architectures_are_only_timed(monkeypatch, tmp_path, capsys, tiny_ldm):
    @contextmanager
    def small(name):
        assert name == "sd1"
        yield models.Model(name, tiny_ldm, 32, "DigitStyles")

    monkeypatch.setattr(models, "opened", small)
    made = diffusers.AutoencoderTiny
    three = {"encoder_block_out_channels": (4,) * 3, "decoder_block_out_channels": (4,) * 3}
    three |= {"num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3}
    monkeypatch.setattr(diffusers, "AutoencoderTiny", lambda: made(**three))
    result = measured(monkeypatch, tmp_path / "random.json", "--ldm", "random")
    (table,) = result["tables"]
    assert list(table[0]) == ["reading", "VAE", "ld_encoder", "ratio"]


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ld_encoder", "--output", str(tmp_path / "x.json")])
    with pytest.raises(InputError, match="--data_dir is needed, except with --ldm random"):
        ld_encoder.main()
