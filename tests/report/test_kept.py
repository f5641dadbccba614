"""Kept results: the same tables from the file as from the folder, and nothing in it that names a machine."""

import json

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.report import results, write
from domainbed_domainfusion.report.compare import compare_left_out
from domainbed_domainfusion.report.jobs import read_sweep
from domainbed_domainfusion.report.kept import write_kept

from .made_up import write_sweep


@pytest.fixture
def folder(tmp_path):
    write_sweep(tmp_path / "sweep", trials=2, pairs=True, algorithms=("ERM", "DomainFusion"))
    return tmp_path / "sweep"


def test_the_tables_are_those_of_the_folder(folder, tmp_path, capsys):
    assert cli.main(["keep", "--input_dir", str(folder), "--output", str(tmp_path / "kept.jsonl")]) == 0
    of_folder, of_file = (results.tables(read_sweep(path).records()) for path in (folder, tmp_path / "kept.jsonl"))
    assert [table.dataset for table in of_file] == ["PACS"] * 3
    for theirs, ours in zip(of_folder, of_file):
        for a, b in zip(theirs.rows, ours.rows):
            assert [(cell.mean, cell.error) for cell in a.cells] == [(cell.mean, cell.error) for cell in b.cells]
    assert compare_left_out([folder]).arms[0].cells == compare_left_out([tmp_path / "kept.jsonl"]).arms[0].cells


def test_the_report_of_the_file_has_the_tables_of_the_report_of_the_folder(folder, tmp_path):
    write_kept(read_sweep(folder), tmp_path / "sweep.jsonl")
    texts = []
    for path in (folder, tmp_path / "sweep.jsonl"):
        page, tables, _ = write(path, tmp_path / "page.html")
        texts.append(tables.read_text().replace("sweep.jsonl", "sweep"))
        assert "ld_share_negative" not in page.read_text() and "a &lt; 0" in page.read_text()
    assert texts[0] == texts[1]


def test_a_job_is_a_line_that_names_no_machine(folder, tmp_path):
    write_kept(read_sweep(folder), tmp_path / "kept.jsonl")
    text = (tmp_path / "kept.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == len(list(folder.iterdir())) == 2 * 2 * 10
    assert str(tmp_path) not in text
    for line in lines:
        assert set(line["rows"][0]) & {"step_time", "mem_gb", "ld_seconds", "generation_seconds", "args"} == set()
        original = (folder / line["args"]["output_dir"] / "results.jsonl").read_text().splitlines()[-1]
        assert line["rows"][-1]["env2_in_acc"] == json.loads(original)["env2_in_acc"]


def test_a_sweep_that_is_not_whole_is_not_kept(folder, tmp_path):
    next(folder.iterdir()).joinpath("done").unlink()
    with pytest.raises(InputError, match="is not whole, so it is not kept: .* is unfinished"):
        write_kept(read_sweep(folder), tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.jsonl").exists()


def test_another_file_is_refused_by_its_line(tmp_path):
    (tmp_path / "kept.jsonl").write_text('{"args": {"output_dir": "a"}, "hparams": {}, "rows": []}\n{"args": 3}\n')
    with pytest.raises(InputError, match=r"kept.jsonl, line 2 is no kept result .*: give a sweep's folder, or a file"):
        read_sweep(tmp_path / "kept.jsonl")
