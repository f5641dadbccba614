"""A temporary, attached copy of the checkout that DOMAINBED_DIR names, and processes that run in it."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed_domainfusion.hosting import attach

ROOT = Path(__file__).resolve().parents[2]
MISSING = (
    "DOMAINBED_DIR is not set to a checkout of facebookresearch/DomainBed: nothing here can be checked against "
    "the real one"
)


def checkout() -> Path | None:
    """The folder that DOMAINBED_DIR names, or None."""
    folder = os.environ.get("DOMAINBED_DIR")
    return Path(folder).resolve() if folder and Path(folder, "domainbed").is_dir() else None


def missing_packages() -> list[str]:
    """The packages of setup.cfg's extra [domainbed] that are not installed: a checkout cannot be imported without."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    missing = []
    for line in setup["options.extras_require"]["domainbed"].split():
        name = re.split(r"[<>=!~]", line)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def obstacle() -> str | None:
    """Why DomainBed cannot run here, in one sentence with the remedy; None if it can."""
    if checkout() is None:
        return MISSING
    if missing := missing_packages():
        return (
            f"DomainBed itself needs {', '.join(missing)}: pip install -e '.[domainbed]', or run `make test-upstream`."
        )
    return None


class Attached:
    """A copy of the checkout in `folder`, attached; `python` runs a module in it as users do, offline, on the CPU."""

    def __init__(self, folder: Path):
        if obstacle() is not None:
            pytest.skip(obstacle())
        from .offline import offline_environment

        self.path = folder / "DomainBed"
        shutil.copytree(checkout(), self.path, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        attach.attach(self.path)
        interpreter = str(Path(sys.executable).parent)  # DomainBed's jobs say plain `python`
        self.environment = {
            **os.environ,
            **offline_environment(folder / "home"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([interpreter, os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def python(self, module: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
        """`python -m module arguments` in the copy; raises with its output if it fails and `check` is set."""
        done = subprocess.run(
            ["python", "-m", module, *map(str, arguments)],
            cwd=self.path,
            capture_output=True,
            text=True,
            env=self.environment,
        )
        if check and done.returncode:
            raise AssertionError(f"{module} {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def script(self, name: str, *arguments: object, **options) -> subprocess.CompletedProcess:
        """One of DomainBed's own scripts."""
        return self.python(f"domainbed.scripts.{name}", *arguments, **options)

    def minibed(self, name: str, *arguments: object, **options) -> subprocess.CompletedProcess:
        """The same script of the embedded host, in a folder where `domainbed` can be imported too."""
        return self.python(f"domainbed_domainfusion.minibed.scripts.{name}", *arguments, **options)

    def add(self, import_line: str) -> None:
        """Local work of a user: one more import at the end of the copy's algorithms."""
        with open(self.path / attach.PATCHED, "a") as file:
            file.write(import_line + "\n")
