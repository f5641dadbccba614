"""A made-up sweep and the host's printed table of a folder."""

import io
import runpy
import sys
from pathlib import Path

import pytest

from domainbed_domainfusion.hosting import host

from .made_up import write_sweep


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory) -> Path:
    """Three algorithms over the four environments of PACS, one trial, every job done."""
    folder = tmp_path_factory.mktemp("made_up") / "sweep"
    write_sweep(folder)
    return folder


@pytest.fixture
def run_host_script(monkeypatch):
    """Run one of the host's scripts with arguments, in this process (a new one would import torch again)."""

    def run(name: str, *arguments: str) -> str:
        printed = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            patch.setattr(sys, "stdout", printed)
            patch.setattr(sys, "__stdout__", printed)
            runpy.run_module(f"{host.NAME}.scripts.{name}", run_name="__main__")
            if sys.stdout is not printed:
                sys.stdout.flush()
        return printed.getvalue()

    return run
