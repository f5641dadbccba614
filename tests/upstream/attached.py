"""A temporary, attached copy of the checkout that DOMAINBED_DIR names, and processes that run in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


class Attached:
    """A copy of the checkout in `folder`, attached; `python` runs a module in it as users do, offline, on the CPU."""

    def __init__(self, folder: Path):
        from .offline import offline_environment  # needs timm, which a run that skips these tests need not have

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
        """The same script of the embedded host; that `domainbed` could be imported here must not confuse it."""
        return self.python(f"domainbed_domainfusion.minibed.scripts.{name}", *arguments, **options)

    def add(self, import_line: str) -> None:
        """Local work of a user: one more import at the end of the copy's algorithms."""
        with open(self.path / attach.PATCHED, "a") as file:
            file.write(import_line + "\n")
