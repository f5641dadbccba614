"""The tables of a sweep: `python -m domainbed_domainfusion.minibed.scripts.collect_results --input_dir …`.

Prints, and writes to `results.txt` in that folder (`results.tex` with --latex), for each of the three selection
methods: a table per dataset (algorithm × test environment, mean and standard error over trials, in percent) and one of
averages.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError
from .. import algorithms, datasets, model_selection
from ..lib import misc, reporting
from ..lib.query import Q


class Cell(NamedTuple):
    """A mean and standard error in percent, and how they are printed; without data the numbers are None."""

    mean: float | None
    error: float | None
    text: str


def format_mean(accuracies: Iterable[float], latex: bool) -> Cell:
    """The cell for accuracies in [0, 1], one per trial."""
    values = list(accuracies)
    if not values:
        return Cell(None, None, "X")
    mean = float(100 * np.mean(values))
    error = float(100 * np.std(values / np.sqrt(len(values))))
    sign = "$\\pm$" if latex else "+/-"
    return Cell(mean, error, f"{mean:.1f} {sign} {error:.1f}")


def _row(label: str, cells: list[Cell]) -> list[str]:
    """The label, the cells and their average (an X if one is missing)."""
    means = [cell.mean for cell in cells if cell.mean is not None]
    average = f"{sum(means) / len(means):.1f}" if len(means) == len(cells) else "X"
    return [label, *(cell.text for cell in cells), average]


def print_table(rows: list[list[Any]], header_text: str, col_labels: Sequence[Any], colwidth: int, latex: bool) -> None:
    """Print rows, each beginning with its label, under the column labels."""
    print()
    if latex:
        print("\\begin{center}\n\\adjustbox{max width=\\textwidth}{%")
        print(f"\\begin{{tabular}}{{l{'c' * (len(col_labels) - 1)}}}\n\\toprule")
        col_labels = ["\\textbf{" + str(label).replace("%", "\\%") + "}" for label in col_labels]
    else:
        print("--------", header_text)
    misc.print_row(col_labels, colwidth=colwidth, latex=latex)
    if latex:
        print("\\midrule")
    for row in rows:
        misc.print_row(row, colwidth=colwidth, latex=latex)
    if latex:
        print("\\bottomrule\n\\end{tabular}}\n\\end{center}")


def _print_heading(level: str, title: str, latex: bool) -> None:
    if latex:
        print(f"\n\\{level}{{{title}}}")


def print_results_tables(records: Q, selection_method: type[model_selection.SelectionMethod], latex: bool) -> None:
    """One table per dataset among the records and one of averages over trials, by that selection method."""
    groups = (
        reporting.get_grouped_records(records)
        .map(lambda group: {**group, "sweep_acc": selection_method.sweep_acc(group["records"])})
        .filter(lambda group: group["sweep_acc"] is not None)
    )
    found = list(records.select("args.algorithm").unique())
    names = [name for name in algorithms.ALGORITHMS if name in found]
    names += [name for name in found if name not in names]
    present = set(records.select("args.dataset"))
    dataset_names = [name for name in datasets.DATASETS if name in present]

    for dataset in dataset_names:
        _print_heading("subsubsection", dataset, latex)
        rows = [
            _row(
                algorithm,
                [
                    format_mean(
                        groups.filter_equals("dataset, algorithm, test_env", (dataset, algorithm, env)).select(
                            "sweep_acc"
                        ),
                        latex,
                    )
                    for env in range(datasets.num_environments(dataset))
                ],
            )
            for algorithm in names
        ]
        environments = datasets.get_dataset_class(dataset).ENVIRONMENTS or []
        print_table(
            rows,
            f"Dataset: {dataset}, model selection method: {selection_method.name}",
            ["Algorithm", *environments, "Avg"],
            colwidth=20,
            latex=latex,
        )

    _print_heading("subsubsection", "Averages", latex)
    rows = [
        _row(
            algorithm,
            [
                format_mean(
                    groups.filter_equals("algorithm, dataset", (algorithm, dataset))
                    .group("trial_seed")
                    .map(lambda trial, members: members.select("sweep_acc").mean()),
                    latex,
                )
                for dataset in dataset_names
            ],
        )
        for algorithm in names
    ]
    print_table(
        rows,
        f"Averages, model selection method: {selection_method.name}",
        ["Algorithm", *dataset_names, "Avg"],
        colwidth=25,
        latex=latex,
    )


def print_report(records: Q, latex: bool) -> None:
    """Everything there is to print for these records."""
    if latex:
        print("\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{adjustbox}\n\\begin{document}")
        print("\\section{Full DomainBed results}")
    print("% Total records:" if latex else "Total records:", len(records))
    for method in model_selection.METHODS:
        _print_heading("subsection", f"Model selection: {method.name}", latex)
        print_results_tables(records, method, latex)
    if latex:
        print("\\end{document}")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the sweep in --input_dir and print its tables, to the screen and to the file beside the jobs."""
    parser = argparse.ArgumentParser(description="Domain generalization testbed")
    parser.add_argument("--input_dir", type=str, required=True)
    parser.add_argument("--latex", action="store_true")
    args = parser.parse_args(argv)
    records = reporting.load_records(args.input_dir)
    if not len(records):
        raise InputError(
            f"No results.jsonl under {args.input_dir}: give the --output_dir of a sweep whose jobs have begun."
        )
    stdout = sys.stdout
    sys.stdout = misc.Tee(os.path.join(args.input_dir, "results.tex" if args.latex else "results.txt"), "w")
    try:
        print_report(records, args.latex)
    finally:
        sys.stdout = stdout


if __name__ == "__main__":
    main()
