"""The page as HTML: markup only, every number comes from `content`."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .. import __version__
from .content import Content, DatasetPart
from .figures.written import read_figures
from .pictures import Choices
from .published import COSTS
from .results import Cell, Table
from .work_chart import Mark, work_chart

TEMPLATES = Path(__file__).parent / "templates"
DASH = "–"
NARROW_PERCENT = "\u202f%"
# One shape per line style, drawn in a 10 × 10 box: colour is never the only mark.
SHAPES = tuple(
    Markup(shape)
    for shape in (
        '<circle cx="5" cy="5" r="4.5"/>',
        '<path d="M5 .3 9.8 9.3H.2z"/>',
        '<path d="M.8.8h8.4v8.4H.8z"/>',
        '<path d="M5 0 10 5 5 10 0 5z"/>',
        '<path d="M3.5 0h3v3.5H10v3H6.5V10h-3V6.5H0v-3h3.5z"/>',
        '<path d="M5 9.7.2.7h9.6z"/>',
        '<path d="M0 3h10v4H0z"/>',
    )
)
# (anchor, heading, field of `DatasetPart` that must not be empty)
SECTIONS = (
    ("results", "Results", "tables"),
    ("trained", "By training environments", "by_training"),
    ("shift", "Validation beside target", "tables"),
    ("published", "Published numbers", "comparisons"),
    ("curves", "Training curves", "curves"),
    ("gallery", "Generated images", "galleries"),
    ("cost", "Cost", "costs"),
    ("hparams", "Hparams", "hparams"),
)


def html(content: Content) -> str:
    """One self-contained page: no script, no font, no image and no style from anywhere else."""
    return (
        environment_of_templates()
        .get_template("page.html")
        .render(
            title=_title(content),
            headline=_headline(content),
            status=_status(content),
            problems=_problems(content),
            folder=content.sweep.path,
            version=__version__,
            host=content.host,
            datasets=content.datasets,
            sections=_sections,
            averages=_averages(content),
            gaps=content.gaps,
            unfinished=content.sweep.unfinished,
            damage=content.sweep.damage,
            published_costs=COSTS,
            best=_best,
            caption=_caption,
            why_empty=_why_empty,
            work_chart=_work_chart,
            is_unfinished=lambda cell: _is_unfinished(content, cell),
        )
        + "\n"
    )


def figures_html(run: str, folder: Path) -> str:
    """A self-contained page of the figures in a folder; `run` is the run's name."""
    return (
        environment_of_templates()
        .get_template("figures_page.html")
        .render(run=run, figures=read_figures(folder), version=__version__)
        + "\n"
    )


def environment_of_templates() -> jinja2.Environment:
    """The environment in which every page is rendered: strict, escaped, with our filters and the style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        one_decimal=one_decimal, signed=signed, duration=duration, value=value, sentence=_sentence, choices=_choices
    )
    environment.globals.update(shapes=SHAPES, css=Markup((TEMPLATES / "page.css").read_text()))
    return environment


def one_decimal(number: float | None) -> str:
    """A number with one decimal, a dash for None."""
    return DASH if number is None else f"{number:.1f}"


def signed(number: float | None) -> str:
    """A difference with its sign and one decimal, a dash for None."""
    return DASH if number is None else f"{number:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in a readable unit, from milliseconds to days; a dash for zero."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.2f} {unit}" if unit == "days" else f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms" if seconds > 0 else DASH


def value(hparam: Any) -> str:
    """An hparam's value as JSON would write it, floats to four digits."""
    return f"{hparam:.4g}" if isinstance(hparam, float) else json.dumps(hparam)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(content: Content) -> str:
    if not content.datasets:
        return f"{content.sweep.path.resolve().name}: no results yet"
    algorithms = dict.fromkeys(row.algorithm for part in content.datasets for row in part.tables[0].rows)
    return f"{_listed(list(algorithms))} on {_listed([part.name for part in content.datasets])}"


def _headline(content: Content) -> str:
    """The main result of each dataset in one sentence."""
    sentences = []
    for part in content.datasets:
        if not part.ranking:
            continue
        best = one_decimal(part.ranking[0].average)
        leaders = [row.algorithm for row in part.ranking if one_decimal(row.average) == best]
        others = part.ranking[len(leaders) :]
        behind = _listed([f"{row.algorithm} ({one_decimal(row.average)}{NARROW_PERCENT})" for row in others])
        rest = f", before {behind}" if others else ""
        sentences.append(
            f"On {part.name}, {_listed(leaders)} {'reach' if len(leaders) > 1 else 'reaches'} {best}{NARROW_PERCENT} "
            f"on domains left out of training, averaged over {len(part.ranking[0].cells)} of them{rest}."
        )
    if not sentences and any(part.by_training for part in content.datasets):
        return "No run left out a single domain: the numbers stand below, by training environments."
    return " ".join(sentences) or "No algorithm has a number for every domain yet."


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _status(content: Content) -> str:
    jobs = content.sweep.jobs
    done = len(jobs) - len(content.sweep.unfinished)
    steps = sorted({job.steps for job in jobs if job.done and job.rows})
    steps_each = f", {steps[0]:,} steps each" if len(steps) == 1 else ""
    trials = max((part.tables[0].trials for part in content.datasets), default=0)
    return f"{done} of {len(jobs)} runs finished{steps_each}; {trials or 'no'} trial{'' if trials == 1 else 's'}."


def _problems(content: Content) -> str:
    """The notice at the top of the page; empty for a complete folder."""
    sentences = []
    missing = sum(len(gap.jobs) for gap in content.gaps)
    if missing:
        sentences.append(f"Jobs of this sweep without a finished run: {missing}.")
    unfinished = len(content.sweep.unfinished)
    if unfinished:
        sentences.append(
            f"Started but not finished: {unfinished}; their results so far count, as they do for the host, and are "
            "marked †."
        )
    if content.sweep.damage:
        sentences.append(f"Damaged lines left out: {len(content.sweep.damage)}.")
    return " ".join(sentences)


def _sections(part: DatasetPart) -> list[tuple[str, str]]:
    return [
        (anchor, name)
        for anchor, name, field in SECTIONS
        if getattr(part, field) and not (anchor == "shift" and part.tables[0].is_empty)
    ]


def _work_chart(part: DatasetPart) -> Markup | None:
    """Accuracy against the diffusion model's work; None if no method used one, or if no work was recorded."""
    work = {cost.algorithm: cost.evaluations for cost in part.costs}
    marks = [
        Mark(row.algorithm, part.styles[row.algorithm], evaluations, row.average, row.average_error)
        for row in part.ranking
        if (evaluations := work[row.algorithm]) is not None and row.average is not None
    ]
    if not any(mark.work for mark in marks):
        return None
    return work_chart(marks, f"{part.name}: accuracy against evaluations of the diffusion model")


def _best(table: Table, env: int | None) -> float | None:
    """The best number in the column of environment `env`, or of the averages for None.

    None if the column has fewer than two numbers: nothing was beaten.
    """
    if env is None:
        numbers = [row.average for row in table.rows if row.average is not None]
    else:
        cells = [row.cells[env] for row in table.rows]
        numbers = [cell.mean for cell in cells if cell is not None]
    return max(numbers) if len(numbers) > 1 else None


def _caption(table: Table) -> str:
    trained = f"the other {len(table.environments) - 1}" if len(table.environments) > 2 else "the other one"
    spread = (
        f"mean ± standard error over {table.trials} trials"
        if table.trials > 1
        else "one trial, so the standard error of ± 0.0 says nothing about the spread"
    )
    return f"Accuracy in % on the unseen domain, after training on {trained}; {spread}. Best of a column in bold."


def _why_empty(table: Table) -> str:
    if "leave-one-domain-out" in table.method:
        return "it needs runs with two test environments, and a sweep over single ones has none"
    return "it needs runs with a single test environment, and there is none"


def _is_unfinished(content: Content, cell: Cell) -> bool:
    return any(Path(choice.output_dir).name in content.unfinished_folders for choice in cell.choices)


def _choices(choices: Choices) -> str:
    def percentages(fractions: tuple[float, ...]) -> str:
        return ", ".join(f"{100 * fraction:.0f}" for fraction in fractions) + NARROW_PERCENT

    numbers = ", ".join(str(number) for number in range(1, len(choices.content) + 1))
    return (
        f"Content from candidate {numbers}: {percentages(choices.content)}; style: {percentages(choices.style)}; "
        f"{100 * choices.mixed:.0f}{NARROW_PERCENT} of all generated images mix two candidates."
    )


def _averages(content: Content) -> list[tuple[str, list[tuple]]]:
    """The host's Averages table for each selection method that has a number.

    Rows of (algorithm, (mean, error) per dataset, average).
    """
    if len(content.datasets) < 2:
        return []
    algorithms = dict.fromkeys(row.algorithm for part in content.datasets for row in part.tables[0].rows)
    made = []
    for number, table in enumerate(content.datasets[0].tables):
        rows = [_average_row(algorithm, [part.tables[number] for part in content.datasets]) for algorithm in algorithms]
        if any(cell is not None for _, cells, _ in rows for cell in cells):
            made.append((table.method, rows))
    return made


def _average_row(algorithm: str, tables: list[Table]) -> tuple[str, list[tuple | None], float | None]:
    rows = [next((row for row in table.rows if row.algorithm == algorithm), None) for table in tables]
    cells = [
        (sum(row.trial_means) / len(row.trial_means), row.average_error)
        if row is not None and row.trial_means
        else None
        for row in rows
    ]
    means = [cell[0] for cell in cells if cell is not None]
    average = sum(means) / len(means) if len(means) == len(cells) else None
    return algorithm, cells, average
