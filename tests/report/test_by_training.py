"""Runs with one training environment: what was trained on what, and no missing jobs that nobody asked for."""

import json

import numpy as np
import pytest

from domainbed_domainfusion.report import write
from domainbed_domainfusion.report.gaps import find_gaps
from domainbed_domainfusion.report.jobs import read_sweep

from .made_up import write_job, write_sweep


def rewrite(job, values: list[dict]) -> None:
    """Give the job's rows these accuracies: one dict of env → accuracy (of both splits) for each step."""
    rows = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()][: len(values)]
    for row, accuracies in zip(rows, values):
        for env, accuracy in accuracies.items():
            row[f"env{env}_in_acc"] = row[f"env{env}_out_acc"] = accuracy
    (job / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(folder, tmp_path, suffix=".md") -> str:
    write(folder, tmp_path / "report.html")
    return (tmp_path / "report.html").with_suffix(suffix).read_text()


def test_the_checkpoint_is_chosen_where_the_run_was_trained(tmp_path):
    """By hand. Two trials; the first has two hparams seeds. High accuracies on test environments choose nothing."""
    sweep = tmp_path / "sweep"
    first, other, second = (
        write_job(sweep, "PACS", "ERM", [0, 2, 3], trial=trial, hparams_seed=seed)
        for trial, seed in ((0, 0), (0, 1), (1, 0))
    )
    rewrite(first, [{0: 0.9, 1: 0.5, 2: 0.9, 3: 0.9}, {0: 0.1, 1: 0.8, 2: 0.2, 3: 0.3}])
    rewrite(other, [{0: 0.9, 1: 0.7, 2: 0.9, 3: 0.9}])
    rewrite(second, [{0: 0.3, 1: 0.6, 2: 0.4, 3: 0.5}, {0: 0.9, 1: 0.5, 2: 0.9, 3: 0.9}])
    error = 100 * np.std([0.1, 0.3]) / np.sqrt(2)  # the same of each environment
    cells = [f"{number:.1f} ± {error:.1f}" for number in (20, 30, 40)]
    assert f"| C | ERM | {cells[0]} | – | {cells[1]} | {cells[2]} | 30.0 |" in text(sweep, tmp_path)


def test_each_source_has_its_rows_and_nothing_is_missing(tmp_path):
    sweep = tmp_path / "sweep"
    for algorithm in ("SAM", "ERM"):
        for source in (3, 0):
            write_job(sweep, "PACS", algorithm, [env for env in range(4) if env != source])
    assert find_gaps(read_sweep(sweep)) == []
    markdown = text(sweep, tmp_path)
    rows = [line.split(" | ")[:2] for line in markdown.splitlines() if line.startswith(("| A |", "| S |"))]
    assert rows == [["| A", "ERM"], ["| A", "SAM"], ["| S", "ERM"], ["| S", "SAM"]]
    assert "Missing" not in markdown
    page = text(sweep, tmp_path, ".html")
    assert "No run left out a single domain: the numbers stand below, by training environments." in page
    assert page.count('class="number absent">trained<') == 4 and "Not complete" not in page
    assert r"A & ERM & -- & " in text(sweep, tmp_path, ".tex")


def test_beside_a_sweep_of_the_host(tmp_path):
    """Its tables are as they were, and its pairs are no rows: they serve the host's leave-one-domain-out."""
    write_sweep(tmp_path / "plain", algorithms=("ERM",), pairs=True)
    write_sweep(tmp_path / "mixed", algorithms=("ERM",), pairs=True)
    alone = text(tmp_path / "plain", tmp_path)
    write_job(tmp_path / "mixed", "PACS", "ERM", [1, 2, 3])
    mixed = text(tmp_path / "mixed", tmp_path)
    assert "by training environments" not in alone and "Missing" not in mixed
    before, _, rest = mixed.partition("Accuracy in % on each environment left out, by training environments\n\n")
    table, _, after = rest.partition("\n\n")
    assert (before + after).replace("# mixed", "# plain") == alone
    assert [line.split(" | ")[:2] for line in table.splitlines()[2:]] == [["| A", "ERM"]]


def test_pairs_of_three_environments_are_runs_on_one(tmp_path):
    sweep = tmp_path / "sweep"
    for tests in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        job = write_job(sweep, "Elsewhere", "ERM", tests)
        rows = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if not key.startswith("env3")} for row in rows]
        (job / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [line.split(" | ")[0] for line in text(sweep, tmp_path).splitlines() if line.startswith("| env")]
    assert rows == ["| env0", "| env1", "| env2"]


@pytest.mark.parametrize("environments, words", [(4, "the other 3"), (2, "the other one")])
def test_the_caption_says_what_the_runs_were_trained_on(tmp_path, environments, words):
    sweep = tmp_path / "sweep"
    for env in range(environments):
        job = write_job(sweep, "Elsewhere", "ERM", [env])
        rows = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
        gone = tuple(f"env{other}_" for other in range(environments, 4))
        rows = [{key: value for key, value in row.items() if not key.startswith(gone or "never")} for row in rows]
        (job / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"on the unseen domain, after training on {words}; one trial" in text(sweep, tmp_path, ".html")
