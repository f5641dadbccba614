"""Training curves of the runs that training-domain validation chose: one chart per test environment."""

from collections.abc import Callable
from dataclasses import dataclass

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
class Figure:
    """Charts of one quantity side by side, one per test environment."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


def figures(environments: tuple[str, ...], runs: dict[int, dict[str, Job]], styles: dict[str, int]) -> list[Figure]:
    """Loss, target accuracy and validation accuracy over the steps, then the terms of a loss that has several.

    `runs[test environment][algorithm]` is the job to draw, `styles[algorithm]` the number of its line style.
    """

    def of(value: Callable[[dict, int], float]) -> dict[int, list[Series]]:
        return {
            env: [
                Series(name, styles[name], _points(job, lambda row, env=env: value(row, env)))
                for name, job in jobs.items()
            ]
            for env, jobs in runs.items()
        }

    made = [
        _figure(
            "Classification loss on raw training images",
            "Cross-entropy as each algorithm reports it: raw_loss where there is one, loss otherwise.",
            environments,
            of(lambda row, env: row.get("raw_loss", row.get("loss", float("nan")))),
        ),
        _figure(
            "Accuracy on the unseen domain, %",
            "In-split of the test environment: never used for any choice in training-domain validation.",
            environments,
            of(lambda row, env: 100 * row[f"env{env}_in_acc"]),
            PERCENT,
        ),
        _figure(
            "Validation accuracy on the training domains, %",
            "Mean over the out-splits of the training domains: what picks the checkpoint.",
            environments,
            of(lambda row, env: 100 * _validation(row, env)),
            PERCENT,
        ),
        *_term_figures(environments, runs),
    ]
    return [figure for figure in made if figure is not None]


def _validation(row: dict, test_env: int) -> float:
    envs = range(len(row))
    return float(np.mean([row[f"env{env}_out_acc"] for env in envs if f"env{env}_out_acc" in row and env != test_env]))


def _points(job: Job, value: Callable[[dict], float]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((row["step"], float(value(row))) for row in job.rows))


def _figure(
    title: str,
    caption: str,
    environments: tuple[str, ...],
    series: dict[int, list[Series]],
    values: tuple[float, float] | None = None,
) -> Figure | None:
    limits = limits_of(list(series.values()))
    if limits is None:
        return None
    panels = []
    for env, lines in sorted(series.items()):
        told = f"{title}, test domain {environments[env]}: {_told(lines)}"
        panels.append(Panel(environments[env], line_chart(lines, told, values or limits[0], limits[1])))
    return Figure(title, caption, tuple(panels))


def _told(lines: list[Series]) -> str:
    """What a line chart says, in words: where each line starts and ends."""
    return "; ".join(f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in lines)


def _term_figures(environments: tuple[str, ...], runs: dict[int, dict[str, Job]]) -> list[Figure | None]:
    algorithms = dict.fromkeys(
        name for jobs in runs.values() for name, job in jobs.items() if any(TERMS[1][0] in row for row in job.rows)
    )
    made = []
    for algorithm in algorithms:
        jobs = {env: of_env[algorithm] for env, of_env in runs.items() if algorithm in of_env}
        series = {
            env: [
                Series(label, style, _points(job, lambda row, key=key: row.get(key, float("nan"))))
                for style, (key, label) in enumerate(TERMS)
            ]
            for env, job in jobs.items()
        }
        caption = f"Before weighting by λ1, λ2 and λ3. {_coefficients(environments, jobs)}"
        made.append(_figure(f"The three terms of {algorithm}’s loss", caption, environments, series))
    return made


def _coefficients(environments: tuple[str, ...], jobs: dict[int, Job]) -> str:
    """The mean of LD's coefficient a per test environment: below zero where LD raises the true class's confidence."""
    means = {
        env: mean_over_steps(job.rows, "ld_coefficient")
        for env, job in sorted(jobs.items())
        if any("ld_coefficient" in row for row in job.rows)
    }
    if not means:
        return ""
    told = ", ".join(f"{environments[env]} {mean:+.2g}" for env, mean in means.items()).replace("-", "−")
    return f"Mean LD coefficient a per unseen domain: {told}; below 0 it raises the confidence in the true class."
