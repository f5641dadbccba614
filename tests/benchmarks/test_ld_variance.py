"""`benchmarks.ld_variance`: what is drawn anew, the variances, and what they are ratios of."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import ld_variance
from benchmarks.ld_variance import Way
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.pocket import digit_styles


def test_the_variances_are_numpys():
    a = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    rows = a.double().numpy()
    of_image = np.mean([np.var(rows[:, i], ddof=1) for i in range(3)])
    assert ld_variance.variances(a) == pytest.approx((of_image, np.var(rows.mean(1), ddof=1)))


def test_independent_draws_halve_the_variance_and_pairs_of_an_odd_function_have_none(monkeypatch, tmp_path, capsys):
    """a_i is the sum of what a twin of LD draws: an odd function of the noise."""
    monkeypatch.setattr(digit_styles, "PER_CLASS", 4)
    monkeypatch.setattr(ld_variance, "PRESETS", ("score",))
    monkeypatch.setattr(ld_variance, "WAYS", [Way(1), Way(2), Way(2, antithetic=True)])
    asked, orders = set(), set()

    class Odd:
        def __init__(self, draws, antithetic):
            self.draws, self.antithetic = draws, antithetic

        def coefficients(self, x, y, p, seeds, stratified):
            asked.add(tuple(seeds))
            orders.add(tuple(p.argsort().tolist()))
            assert p.min() == pytest.approx(0.1) and p.max() == pytest.approx(0.95) and x.min() < 0
            noise = torch.stack(
                [torch.randn(2, generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
            )
            if self.antithetic:
                noise[:, 1] = -noise[:, 0]
            return None, noise[:, : self.draws].mean(1)

    monkeypatch.setattr(ld_variance.Draws, "_distillation", lambda self, way: Odd(way.draws, way.antithetic))
    output = tmp_path / "variance.json"
    words = ["ld_variance", "--data_dir", str(tmp_path), "--output", str(output), "--images", "6", "--sets", "400"]
    monkeypatch.setattr(sys, "argv", words)
    assert ld_variance.main() == 0
    (table,) = json.loads(output.read_text())["tables"]
    one, two, pairs = (list(row.values()) for row in table)
    assert one[:4] == ["score", "1 draw", "1.00", "1.00"] and pairs[:4] == [
        "score",
        "2 draws, antithetic",
        "0.00",
        "0.00",
    ]
    assert two[1] == "2 draws" and 0.42 < float(two[2]) < 0.58 and 0.4 < float(two[3]) < 0.6
    assert len(asked) == 400  # every way sees the same sets
    assert len(orders) > 100
    assert "| score | 2 draws | " in capsys.readouterr().out


def test_a_coefficient_belongs_to_its_image_in_any_order(tmp_path):
    """With the confidence itself in a's place, every set gives the confidences."""

    class Confidence:
        def coefficients(self, x, y, p, seeds, stratified):
            assert torch.equal(x[:, 0, 0, 0], p) and torch.equal(y, p)
            return None, p

    p = torch.linspace(0.1, 0.95, 5)
    draws = ld_variance.Draws(None, {}, p[:, None, None, None], p)
    draws._distillation = lambda way: Confidence()
    assert all(torch.equal(draws.coefficients(Way(1), number), p) for number in range(4))


def test_the_real_coefficients_are_latent_distillations(monkeypatch, tmp_path):
    monkeypatch.setattr(digit_styles, "PER_CLASS", 4)
    monkeypatch.setattr(ld_variance, "TIMED", 1)
    monkeypatch.setattr(ld_variance, "WAYS", [Way(1), Way(2, antithetic=True, stratified=True)])
    results = ld_variance.run(tmp_path, 2, 2)
    assert [table.rows[0][:4] for table in results.tables] == [
        [name, "1 draw", "1.00", "1.00"] for name in ld_variance.PRESETS
    ]
    assert all(float(table.rows[1][2]) > 0 for table in results.tables)
    assert len({table.rows[1][2] for table in results.tables}) > 1


def test_too_little_to_measure_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be at least 2"):
        ld_variance.run(tmp_path, 12, 1)
