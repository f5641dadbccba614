"""The page's tables as Markdown for a README, and as LaTeX for a paper."""

from .content import Content, DatasetPart
from .results import Cell, Table

DASH = "–"
LATEX_PLUS_MINUS = r" $\pm$ "


def markdown(content: Content) -> str:
    """Every accuracy table, the published numbers beside ours, and the commands for missing jobs."""
    parts = [f"# {content.sweep.path.resolve().name}\n"]
    for part in content.datasets:
        parts.append(f"## {part.name}\n")
        parts += [
            f"Accuracy in %, {table.method}\n\n{_markdown_table(*_cells(table, ' ± '))}"
            for table in part.tables
            if not table.is_empty
        ]
        if part.by_training:
            parts.append(
                "Accuracy in % on each environment left out, by training environments\n\n"
                f"{_markdown_table(*_by_training_cells(part, ' ± '))}"
            )
        if part.comparisons:
            parts.append(
                f"Beside published numbers (average in %, training-domain validation)\n\n"
                f"{_markdown_table(*_comparison_cells(part))}"
            )
    for gap in content.gaps:
        commands = "\n".join(gap.commands)
        jobs = f"{len(gap.jobs)} job{'s' if len(gap.jobs) > 1 else ''}"
        parts.append(f"Missing: {gap.algorithm} on {gap.dataset}, {jobs}\n\n```\n{commands}\n```\n")
    return "\n".join(parts)


def latex(content: Content) -> str:
    """Every accuracy table and the published numbers beside ours, as booktabs tabulars to be \\input."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for part in content.datasets:
        parts += [
            f"% {part.name}, {table.method}\n{_latex_table(*_cells(table, LATEX_PLUS_MINUS))}"
            for table in part.tables
            if not table.is_empty
        ]
        if part.by_training:
            cells = _by_training_cells(part, LATEX_PLUS_MINUS)
            parts.append(f"% {part.name}, by training environments\n{_latex_table(*cells)}")
        if part.comparisons:
            parts.append(f"% {part.name}, beside published numbers\n{_latex_table(*_comparison_cells(part))}")
    return "\n".join(parts)


def _cells(table: Table, plus_minus: str) -> tuple[list[str], list[list[str]]]:
    header = ["Algorithm", *table.environments, "Avg"]
    return header, [
        [row.algorithm, *(_text_of(cell, plus_minus) for cell in row.cells), _number(row.average)] for row in table.rows
    ]


def _by_training_cells(part: DatasetPart, plus_minus: str) -> tuple[list[str], list[list[str]]]:
    header = ["Trained on", "Algorithm", *part.tables[0].environments, "Avg"]
    return header, [
        [
            ", ".join(row.environments),
            row.algorithm,
            *(_text_of(cell, plus_minus) for cell in row.cells),
            _number(row.average),
        ]
        for row in part.by_training
    ]


def _text_of(cell: Cell | None, plus_minus: str) -> str:
    return DASH if cell is None else f"{cell.mean:.1f}{plus_minus}{cell.error:.1f}"


def _comparison_cells(part: DatasetPart) -> tuple[list[str], list[list[str]]]:
    header = ["Method", "Backbone", "Published", "Ours", "Difference"]
    return header, [
        [one.method, one.backbone, _number(one.published), _number(one.ours), _number(one.difference, "+")]
        for one in part.comparisons
    ]


def _number(number: float | None, sign: str = "") -> str:
    return DASH if number is None else f"{number:{sign}.1f}"


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped) + "\n"


def _latex_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return " & ".join(cell.replace("_", r"\_").replace("&", r"\&").replace(DASH, "--") for cell in cells) + r" \\"

    body = [line(header), r"\midrule", *map(line, rows)]
    return (
        "\n".join(
            [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
        )
        + "\n"
    )
