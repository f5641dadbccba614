"""The charts of what Latent Distillation does over a run."""

from pathlib import Path

import pytest

from domainbed_domainfusion.report.curves import training_curves
from domainbed_domainfusion.report.jobs import Job

ENVIRONMENTS = ("H", "P")


def job(rows: list[dict]) -> Job:
    accuracies = {f"env{env}_{split}_acc": 0.5 for env in range(2) for split in ("in", "out")}
    return Job(Path("job"), [{"step": step, **accuracies, **row} for step, row in enumerate(rows)])


def charts(rows: list[dict]) -> dict[str, str]:
    """title -> the chart of environment P in words, as its alternative text has it."""
    made = training_curves(ENVIRONMENTS, {1: {"DomainFusion": job(rows)}}, {"DomainFusion": 0})
    return {row.title: str(row.panels[0].svg) for row in made}


def test_the_mean_of_each_group_is_its_part_divided_by_its_share():
    rows = [
        {
            "ld_coefficient_below": 0.03,
            "ld_coefficient_above": -0.16,
            "ld_share_below": 0.6,
            "ld_share_negative": 0.25,
            "ld_gradient_ratio": 0.01,
        },
        {
            "ld_coefficient_below": -0.02,
            "ld_coefficient_above": -0.09,
            "ld_share_below": 0.1,
            "ld_share_negative": 0.75,
            "ld_gradient_ratio": 0.2,
        },
    ]
    found = charts(rows)
    coefficient = found["DomainFusion: Latent Distillation’s coefficient a"]
    assert "p &lt; 0.5 from 0.05 to -0.2; p ≥ 0.5 from -0.4 to -0.1" in coefficient
    share = found["DomainFusion: Images whose confidence Latent Distillation raises, %"]
    assert "a &lt; 0 from 25 to 75" in share
    assert "LD ÷ CE from 0.01 to 0.2" in found["DomainFusion: Latent Distillation’s gradient"]


def test_a_group_that_no_step_had_breaks_its_line_only():
    rows = [
        {
            "ld_coefficient_below": 0.03,
            "ld_coefficient_above": 0.0,
            "ld_share_below": 1.0,
            "ld_share_negative": 0.0,
            "ld_gradient_ratio": 0.1,
        }
    ] * 2
    coefficient = charts(rows)["DomainFusion: Latent Distillation’s coefficient a"]
    assert "p &lt; 0.5 from 0.03 to 0.03" in coefficient and "p ≥ 0.5 from nan to nan" in coefficient


@pytest.mark.parametrize("rows", [[{"loss": 1.0}] * 2, [{"raw_loss": 1.0, "ld_coefficient": -0.1}] * 2])
def test_runs_without_these_values_have_no_such_chart(rows):
    assert not any("Latent Distillation" in title for title in charts(rows))
