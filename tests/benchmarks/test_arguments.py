"""The programs of their own: one sentence for a bad --output, before anything is measured."""

import importlib
import sys

import pytest

from domainbed_domainfusion.errors import InputError

PROGRAMS = (
    "algorithms",
    "devices",
    "early_choice",
    "ld_encoder",
    "ld_variance",
    "paper_size",
    "resume",
    "sampler_levers",
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_that_would_overwrite_each_other(name, monkeypatch, tmp_path):
    """The tables go to the .md beside the JSON file, so the JSON file cannot be a .md."""
    program = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(program, "run", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["", "--data_dir", str(tmp_path), "--devices", "cpu", "--output", "x.md"])
    with pytest.raises(InputError, match="must end in .json"):
        program.main()
