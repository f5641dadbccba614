"""Write `recorded.json`, what the real DomainBed does: `DOMAINBED_DIR=<checkout> python -m tests.minibed.record`.

It takes a checkout of facebookresearch/DomainBed at commit b93c22a, without our patch, and what its imports need
(pip install domainbed-domainfusion[domainbed]). The checkout is only read.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def observed(package: str, *paths: Path, options: tuple = (), environment: dict | None = None) -> dict:
    """Run `observe` for a host in a fresh process that imports from `paths`."""
    environment = {
        **(environment or os.environ),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "seen.json")
        subprocess.run(
            [sys.executable, str(HERE / "observe.py"), package, str(output), *options],
            env=environment,
            cwd=folder,
            check=True,
        )
        return json.loads(output.read_text())


def dumps(seen: dict) -> str:
    """JSON with one line for each entry of a section, so that a change makes a small diff."""
    parts = []
    for section, value in seen.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            parts.append(f"{json.dumps(section)}: {{\n{rows}\n}}")
        else:
            rows = ",\n".join(map(json.dumps, value))
            parts.append(f"{json.dumps(section)}: [\n{rows}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    checkout = os.environ.get("DOMAINBED_DIR")
    if not checkout or not Path(checkout, "domainbed").is_dir():
        raise SystemExit("Set DOMAINBED_DIR to a checkout of facebookresearch/DomainBed.")
    about = {
        "source": "facebookresearch/DomainBed b93c22a",
        "torch": torch.__version__.split("+")[0],
        "command": "DOMAINBED_DIR=<checkout> python -m tests.minibed.record",
    }
    seen = {"about": about, **observed("domainbed", Path(checkout))}
    (HERE / "recorded.json").write_text(dumps(seen))


if __name__ == "__main__":
    main()
