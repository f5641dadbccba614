"""The report's numbers against the host's printed tables and against sums done by hand."""

import re

import numpy as np
import pytest

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.report import results
from domainbed_domainfusion.report.content import content_of
from domainbed_domainfusion.report.jobs import read_sweep

from .made_up import write_sweep


def printed_tables(text: str) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(dataset or "Averages", method) → algorithm → cells of the host's printed tables."""
    found, rows = {}, {}
    for line in text.splitlines():
        heading = re.match(r"-------- (?:Dataset: (\w+)|(Averages)), model selection method: (.*)", line)
        if heading:
            rows = found.setdefault((heading[1] or heading[2], heading[3]), {})
        elif line.strip() and not line.startswith(("Total", "Algorithm")):
            name, *cells = re.split(r"\s{2,}", line.strip())
            rows[name] = cells
    return found


def as_printed(cell) -> str:
    return "X" if cell is None else f"{cell.mean:.1f} +/- {cell.error:.1f}"


def test_every_cell_of_every_method_equals_the_hosts_printed_table(tmp_path, run_host_script):
    write_sweep(tmp_path, trials=3, hparams_seeds=3, pairs=True, algorithms=("ERM", "DomainFusion"))
    write_sweep(tmp_path, dataset="OfficeHome", trials=2, algorithms=("ERM",))
    printed = printed_tables(run_host_script("collect_results", "--input_dir", str(tmp_path)))
    tables = results.tables(read_sweep(tmp_path).records())
    assert len(tables) == 6
    for table in tables:
        expected = printed[table.dataset, table.method]
        ours = {
            row.algorithm: [*map(as_printed, row.cells), "X" if row.average is None else f"{row.average:.1f}"]
            for row in table.rows
        }
        assert ours == {name: cells for name, cells in expected.items() if name in ours}
        column = ["PACS", "OfficeHome"].index(table.dataset)  # the host's own order
        for row in (row for row in table.rows if row.trial_means):
            expected = f"{np.mean(row.trial_means):.1f} +/- {row.average_error:.1f}"
            assert expected == printed["Averages", table.method][row.algorithm][column]


def row(trial: int, step: int, validation: float, target: float) -> dict:
    """A result row of ERM with test environment 0."""
    args = {"algorithm": "ERM", "dataset": "PACS", "test_envs": [0], "trial_seed": trial, "hparams_seed": 0}
    accuracies = {"env0_in_acc": target, "env0_out_acc": 0.0, "env1_in_acc": 1.0, "env1_out_acc": validation}
    return {"args": args, "step": step, **accuracies}


def test_a_cell_is_mean_and_standard_error_over_the_trials_of_the_chosen_checkpoints():
    # Trial 0 chooses step 10 (validation 0.9), trial 1 the first of two equal steps, step 0.
    records = host.module("lib.query").Q(
        [row(0, 0, 0.8, 0.7), row(0, 10, 0.9, 0.5), row(0, 20, 0.85, 0.9), row(1, 0, 0.6, 0.3), row(1, 10, 0.6, 0.8)]
    )
    cell = results.tables(records)[0].rows[0].cells[0]
    assert [(choice.step, choice.test_acc) for choice in cell.choices] == [(10, 0.5), (0, 0.3)]
    assert cell.mean == pytest.approx(40.0)
    assert cell.error == pytest.approx(10 / np.sqrt(2))
    assert cell.validation == pytest.approx(75.0)


def test_the_oracle_takes_the_last_checkpoint_even_of_equals():
    records = host.module("lib.query").Q([row(0, 0, 0.8, 0.7), row(0, 10, 0.8, 0.7), row(0, 5, 0.9, 0.9)])
    assert results.tables(records)[2].rows[0].cells[0].choices[0].step == 10


def test_our_average_stands_beside_the_published_one_with_the_difference(sweep_folder):
    part = content_of(read_sweep(sweep_folder)).datasets[0]
    ours = {row.algorithm: row.average for row in part.tables[0].rows}
    found = {one.method: (one.published, one.ours, one.difference) for one in part.comparisons}
    assert found["DomainFusion"] == (90.0, ours["DomainFusion"], ours["DomainFusion"] - 90.0)
    assert found["SAM"] == (85.8, ours["SAM"], ours["SAM"] - 85.8)
    assert found["SWAD"] == (88.1, None, None)


def test_runs_with_a_regnet_are_set_beside_published_regnets(tmp_path):
    write_sweep(tmp_path, dataset="OfficeHome", algorithms=("DomainFusion",))
    for results_file in tmp_path.glob("*/results.jsonl"):
        results_file.write_text(results_file.read_text().replace('"backbone": null', '"backbone": "regnety_16gf_swag"'))
    part = content_of(read_sweep(tmp_path)).datasets[0]
    found = {one.method: one.published for one in part.comparisons}
    assert found["DomainFusion"] == 83.4 and found["MIRO"] == 80.4 and "SAGM" not in found


def test_the_published_rows_average_to_the_published_averages():
    from domainbed_domainfusion.report.published import ACCURACY, REGNETY, RESNET50

    stated = {
        RESNET50: {
            "DomainFusion": 67.5,
            "ERM": 63.3,
            "SAM": 64.5,
            "SAGM": 66.1,
            "MIRO": 65.9,
            "SWAD": 66.9,
            "MIRO+SWAD": 68.1,
            "ERM++": 68.9,
            "DiffusionClassifier": 27.7,
            "TextToImageClassifier": 9.8,
        },
        REGNETY: {"ERM": 68.0, "SWAD": 73.2, "MIRO": 74.1, "MIRO+SWAD": 77.9},
    }
    for backbone, averages in stated.items():
        for method, average in averages.items():
            assert np.mean(ACCURACY[backbone][method]) == pytest.approx(average, abs=0.06), method


def test_generation_cost_is_summed_over_all_steps(sweep_folder):
    cost = {one.algorithm: one for one in content_of(read_sweep(sweep_folder)).datasets[0].costs}
    # 4 runs of 301 steps; rows hold means per step: 0.05 s a step, 0.3 s and 12 images of it generation, 0.1 s LD.
    assert cost["ERM"].training == pytest.approx(4 * 301 * 0.05) and cost["ERM"].images == 0
    assert cost["DomainFusion"].images == pytest.approx(4 * 301 * 12)
    assert cost["DomainFusion"].generation == pytest.approx(4 * 301 * 0.3)
    assert cost["DomainFusion"].generation_days == pytest.approx(4 * 301 * 0.3 / 86400)
    assert cost["DomainFusion"].distillation == pytest.approx(4 * 301 * 0.1)
    assert not cost["ERM"].on_gpu
