"""Training curves of the runs that training-domain validation chose: one chart per test environment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from .charts import Series, limits_of, line_chart
from .cost import mean_over_steps
from .jobs import Job

TERMS = (("raw_loss", "raw"), ("ld_loss", "LD"), ("generated_loss", "generated"))
PERCENT = (0.0, 100.0)


@dataclass(frozen=True)
class Panel:
    """One chart and the test environment it belongs to."""

    environment: str
    svg: Markup


@dataclass(frozen=True)
class ChartRow:
    """Charts of one quantity side by side, one per test environment."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


def training_curves(
    environments: tuple[str, ...], runs: dict[int, dict[str, Job]], styles: dict[str, int]
) -> list[ChartRow]:
    """Loss, target accuracy and validation accuracy over the steps, and the terms of a loss with several terms.

    `runs[test environment][algorithm]` is the job to draw, `styles[algorithm]` the number of its line style.
    """

    def series_of(value: Callable[[dict, int], float]) -> dict[int, list[Series]]:
        return {
            env: [Series(name, styles[name], _points(job, value, env)) for name, job in jobs.items()]
            for env, jobs in runs.items()
        }

    made = [
        _chart_row(
            "Classification loss on raw training images",
            "Cross-entropy as each algorithm reports it: raw_loss where there is one, loss otherwise.",
            environments,
            series_of(lambda row, env: row.get("raw_loss", row.get("loss", float("nan")))),
        ),
        _chart_row(
            "Accuracy on the unseen domain, %",
            "In-split of the test environment: never used for any choice in training-domain validation.",
            environments,
            series_of(lambda row, env: 100 * row[f"env{env}_in_acc"]),
            PERCENT,
        ),
        _chart_row(
            "Validation accuracy on the training domains, %",
            "Mean over the out-splits of the training domains: what picks the checkpoint.",
            environments,
            series_of(lambda row, env: 100 * _validation(row, env)),
            PERCENT,
        ),
        *_term_rows(environments, runs),
        *_distillation_rows(environments, runs),
    ]
    return [row for row in made if row is not None]


def _validation(row: dict, test_env: int) -> float:
    envs = range(len(row))
    return float(np.mean([row[f"env{env}_out_acc"] for env in envs if f"env{env}_out_acc" in row and env != test_env]))


def _term(row: dict, key: str) -> float:
    return row.get(key, float("nan"))


def _points(job: Job, value: Callable[[dict, Any], float], argument: Any) -> tuple[tuple[float, float], ...]:
    """(step, value(row, argument)) of every row, by step."""
    return tuple(sorted((row["step"], float(value(row, argument))) for row in job.rows))


def _chart_row(
    title: str,
    caption: str,
    environments: tuple[str, ...],
    series: dict[int, list[Series]],
    values: tuple[float, float] | None = None,
) -> ChartRow | None:
    limits = limits_of(list(series.values()))
    if limits is None:
        return None
    panels = []
    for env, lines in sorted(series.items()):
        alternative_text = f"{title}, test domain {environments[env]}: {_in_words(lines)}"
        panels.append(Panel(environments[env], line_chart(lines, alternative_text, values or limits[0], limits[1])))
    return ChartRow(title, caption, tuple(panels))


def _in_words(lines: list[Series]) -> str:
    """A line chart in words: the values at which each line starts and ends."""
    return "; ".join(f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in lines)


def _distillation_rows(environments: tuple[str, ...], runs: dict[int, dict[str, Job]]) -> list[ChartRow | None]:
    """What Latent Distillation does over a run: how much it weighs, and which way it pushes the confidence."""
    made = []
    for algorithm in _with_key(runs, "ld_gradient_ratio"):
        jobs = {env: of_env[algorithm] for env, of_env in runs.items() if algorithm in of_env}
        for title, caption, lines, values in LD_CHARTS:
            series = {
                env: [Series(label, style, _points(job, _ld_value, of)) for style, (label, of) in enumerate(lines)]
                for env, job in jobs.items()
            }
            made.append(_chart_row(f"{algorithm}: {title}", caption, environments, series, values))
    return made


def _ld_value(row: dict, of: Callable[[dict], float]) -> float:
    """NaN for rows without these values, and for a group of images that no step had."""
    try:
        return of(row)
    except (KeyError, ZeroDivisionError):
        return float("nan")


def _with_key(runs: dict[int, dict[str, Job]], key: str) -> list[str]:
    """The algorithms that report a value of this name."""
    found = (name for jobs in runs.values() for name, job in jobs.items() if any(key in row for row in job.rows))
    return list(dict.fromkeys(found))


#: (title, caption, lines as (label, value of a results row), fixed limits) of what results rows say of LD.
LD_CHARTS: tuple[tuple[str, str, tuple[tuple[str, Callable[[dict], float]], ...], tuple[float, float] | None], ...] = (
    (
        "Latent Distillation’s gradient",
        "Its norm divided by cross-entropy’s, both weighted and with respect to the logits: at 0.01 LD decides little.",
        (("LD ÷ CE", lambda row: row["ld_gradient_ratio"]),),
        None,
    ),
    (
        "Images whose confidence Latent Distillation raises, %",
        "Share of images with a < 0.",
        (("a < 0", lambda row: 100 * row["ld_share_negative"]),),
        PERCENT,
    ),
    (
        "Latent Distillation’s coefficient a",
        "Mean over images with a confidence p in the true class below 0.5, and from 0.5 on; below 0 it raises p.",
        (
            ("p < 0.5", lambda row: row["ld_coefficient_below"] / row["ld_share_below"]),
            ("p ≥ 0.5", lambda row: row["ld_coefficient_above"] / (1 - row["ld_share_below"])),
        ),
        None,
    ),
)


def _term_rows(environments: tuple[str, ...], runs: dict[int, dict[str, Job]]) -> list[ChartRow | None]:
    made = []
    for algorithm in _with_key(runs, TERMS[1][0]):
        jobs = {env: of_env[algorithm] for env, of_env in runs.items() if algorithm in of_env}
        series = {
            env: [Series(label, style, _points(job, _term, key)) for style, (key, label) in enumerate(TERMS)]
            for env, job in jobs.items()
        }
        caption = f"Before weighting by λ1, λ2 and λ3. {_coefficients(environments, jobs)}"
        made.append(_chart_row(f"The three terms of {algorithm}’s loss", caption, environments, series))
    return made


def _coefficients(environments: tuple[str, ...], jobs: dict[int, Job]) -> str:
    """The mean of LD's coefficient a per test environment. Below zero, LD raises the confidence in the true class."""
    means = {
        env: mean_over_steps(job.rows, "ld_coefficient")
        for env, job in sorted(jobs.items())
        if any("ld_coefficient" in row for row in job.rows)
    }
    if not means:
        return ""
    values = ", ".join(f"{environments[env]} {mean:+.2g}" for env, mean in means.items()).replace("-", "−")
    return f"Mean LD coefficient a per unseen domain: {values}; below 0 it raises the confidence in the true class."
