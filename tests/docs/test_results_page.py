"""RESULTS.md against the kept results: every table in it is what the command above it prints."""

import re

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.report.jobs import read_sweep

from .pages import ROOT, blocks

PAGE = ROOT / "RESULTS.md"
COMPARISONS = [
    (block, words) for block in blocks(PAGE) for words in block.commands() if words[:2] == ["domainfusion", "compare"]
]
KEPT = sorted((ROOT / "results").rglob("*.jsonl"))


@pytest.mark.parametrize("block, words", COMPARISONS, ids=lambda value: str(value) if value is not list else "")
def test_the_tables_are_what_the_commands_print(block, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = [str(path) for word in words[2:] for path in (sorted(ROOT.glob(word)) if "*" in word else [word])]
    assert cli.main(["compare", *(re.sub(f"^{ROOT}/", "", argument) for argument in arguments)]) == 0
    after = PAGE.read_text().split(f"\n{block.text}\n", 1)[1]
    printed = "\n\n".join(capsys.readouterr().out.strip().split("\n\n"))
    assert printed.replace("\n\n\n", "\n\n") in after, "run the command again and put what it prints below it"


def test_there_are_tables_and_each_kept_file_stands_in_one():
    named = " ".join(" ".join(words) for _, words in COMPARISONS)
    assert len(COMPARISONS) >= 2 and len(KEPT) >= 10
    for path in KEPT:
        name = str(path.relative_to(ROOT))
        globbed = re.escape(str(path.parent.relative_to(ROOT))) + r"/[\w-]*\*"
        assert name in named or re.search(globbed, named), name


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_file_names_no_folder_of_a_machine(path):
    assert not re.search(r'"/\w', path.read_text())
    assert all(job.rows for job in read_sweep(path).jobs)
