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


@pytest.mark.parametrize("block, words", COMPARISONS, ids=str)
def test_the_tables_are_what_the_commands_print(block, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(words[1:]) == 0
    after = PAGE.read_text().split(f"\n{block.text}\n```\n\n", 1)[1]
    assert after.startswith(capsys.readouterr().out.strip()), "run the command again and put what it prints below it"


def test_there_are_tables_and_each_kept_file_stands_in_one():
    named = " ".join(" ".join(words) for _, words in COMPARISONS)
    assert len(COMPARISONS) >= 2 and len(KEPT) >= 10
    for path in KEPT:
        assert str(path.relative_to(ROOT)) in named


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_file_names_no_folder_of_a_machine(path):
    assert not re.search(r'"/\w', path.read_text())
    assert all(job.rows for job in read_sweep(path).jobs)


def test_the_papers_effects_are_the_papers_and_ours_stand_in_the_table_above():
    """The signs of the ablations: the paper's differences from its averages, ours from the table of `compare`."""
    section = PAGE.read_text().split("## The paper's ablations\n", 1)[1].split("\n## ", 1)[0]
    ours = set(re.findall(r"\| ([+-]\d+\.\d) \|$", section, flags=re.M))
    effects = re.findall(r"^\| (.+?) \| (Tables? .+?|–) \| (\S+) \| (\S+) \|$", section.replace("−", "-"), flags=re.M)
    assert len(effects) >= 8
    full = 83.4
    averages = {
        "no Latent Distillation": 78.6,
        "no dataset updating": 79.6,
        "no sampling strategy (N = 1)": 81.7,
        "N = 5": 82.6,
        "corruption: blur in place of contrast": 83.1,
        "corruption: pepper noise": 81.7,
        "corruption: random mask": 78.6,
    }
    for name, table, paper, here in effects:
        assert here in ours, name
        if table != "–":
            assert float(paper) == pytest.approx(averages.pop(name) - full), name
    assert not averages


def test_what_latent_distillation_does_on_pacs_is_that_of_the_last_rows():
    text = " ".join(PAGE.read_text().split())
    last = {
        arm: [job.rows[-1] for job in read_sweep(ROOT / "results" / "pacs128" / f"pacs128-{arm}.jsonl").jobs]
        for arm in ("paper", "ld-guidance")
    }
    (inert,) = {f"{row['ld_gradient_ratio']:.2f}" for row in last["paper"]}
    assert f"of `pacs128-paper.jsonl` its gradient is {inert} of cross-entropy's" in text
    shares = sorted(100 * row["ld_share_negative"] for row in last["ld-guidance"])
    assert f"{shares[0]:.0f} to {shares[-1]:.0f} % of the images have a < 0" in text
    ratios = sorted(row["ld_gradient_ratio"] for row in last["ld-guidance"])
    assert f"Its gradient is {ratios[0]:.1f} to {ratios[-1]:.1f} of cross-entropy's. On DigitStyles" in text
