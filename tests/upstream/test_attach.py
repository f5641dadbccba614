"""attach and detach on the real checkout, and the patch file beside them."""

import filecmp
import shutil
import subprocess
from pathlib import Path

import pytest

from domainbed_domainfusion.hosting import attach

from .attached import ROOT


@pytest.fixture
def copy(domainbed_dir, tmp_path):
    return Path(shutil.copytree(domainbed_dir, tmp_path / "DomainBed", ignore=shutil.ignore_patterns("__pycache__")))


def differing(left: Path, right: Path) -> list[str]:
    """Files that only one tree has or that differ in a byte, .git and compiled files left aside."""
    names = {
        str(path.relative_to(root))
        for root in (left, right)
        for path in root.rglob("*")
        if path.is_file() and not {".git", "__pycache__"} & set(path.parts)
    }
    _, mismatched, missing = filecmp.cmpfiles(left, right, sorted(names), shallow=False)
    return mismatched + missing


def test_one_line_is_added_and_taken_away(domainbed_dir, copy):
    assert attach.check(copy) == 1
    attach.attach(copy)
    assert differing(domainbed_dir, copy) == [attach.PATCHED]
    assert (copy / attach.PATCHED).read_text() == (domainbed_dir / attach.PATCHED).read_text() + attach.LINE + "\n"
    assert attach.check(copy) == 0
    attach.detach(copy)
    assert differing(domainbed_dir, copy) == []


def test_the_patch_file_does_the_same(domainbed_dir, copy):
    patch = ROOT / "patches" / "0001-register.patch"
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=copy, check=True)
    assert (copy / attach.PATCHED).read_text() == (domainbed_dir / attach.PATCHED).read_text() + attach.LINE + "\n"
    assert attach.check(copy) == 0


def test_git_sees_no_change_after_detach(copy):
    if not (copy / ".git").exists():
        pytest.skip("DOMAINBED_DIR is not a git clone")
    attach.attach(copy)
    attach.detach(copy)
    status = subprocess.run(["git", "-C", copy, "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == ""
