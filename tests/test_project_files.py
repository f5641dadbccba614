"""CONTRIBUTING.md, CITATION.cff, the Makefile and CI against the files and the version that they name."""

import re
from pathlib import Path

import yaml

import domainbed_domainfusion

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_recipes_point_at_files_and_names_that_exist():
    pointed = re.findall(r"`([\w.-]+(?:/[\w.-]+)+)`(?:\s+\(`(\w+)`)?", CONTRIBUTING)
    assert len(pointed) >= 12 and sum(bool(name) for _, name in pointed) >= 6
    for path, name in pointed:
        assert (ROOT / path).is_file(), path
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.M), (path, name)


def test_every_make_command_is_a_target():
    for text in (CONTRIBUTING, (ROOT / ".ci" / "run").read_text()):
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", text):
            assert f"\n{target}:" in MAKEFILE, target


def test_ci_runs_the_checks_and_then_the_suite():
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line.split()[1] for line in commands if line.startswith("make ")] == ["check", "test"]


def test_the_citation_has_this_version_and_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == domainbed_domainfusion.__version__
    paper = citation["preferred-citation"]
    for entry in (citation, paper):
        assert {"title", "authors", "type"} <= entry.keys() and entry["authors"]
    assert {"cff-version", "message"} <= citation.keys() and paper["year"] == 2024
    assert f"## [{citation['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
