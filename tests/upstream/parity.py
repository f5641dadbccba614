"""How far DomainBed and minibed agree, as a table: `DOMAINBED_DIR=<checkout> python -m tests.upstream.parity`.

Both hosts run the same program (`tests/minibed/observe.py`) in fresh processes, DomainBed in an attached copy of the
checkout; every value is compared for equality, to the bit.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ..minibed.record import observed
from .attached import ROOT, Attached, obstacle

TITLES = {
    "seed_hash": "seeds",
    "splits": "splits (indices)",
    "hparams": "hparams of ERM, default and 20 seeds",
    "hparams of ours": "hparams of SAM and DomainFusion, default and 20 seeds",
    "jobs": "sweep jobs: arguments, folders, commands, states",
    "constants": "dataset constants",
    "featurizers": "featurizers at 28 and 32 pixels: initialisation, features, random numbers after it",
    "ResNet-50": "the same at 224 pixels",
    "train": "ERM on Debug28: results.jsonl, files, layout of model.pkl",
    "SAM": "SAM on Debug28: the same",
    "PACS, ResNet-18": "ERM on random images in PACS's folders, augmented, ResNet-18: the same",
    "tables": "collect_results and list_top_hparams of a made-up sweep (lines)",
}


class Check(NamedTuple):
    """One section: how many values were compared, and where those that differ are."""

    title: str
    compared: int
    differences: list[str]


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every single value by its path; a text counts line by line."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    elif isinstance(value, str) and "\n" in value:
        return {f"{path}/{number}": line for number, line in enumerate(value.splitlines(keepends=True))}
    else:
        return {path: value}
    return {key: leaf for name, part in parts for key, leaf in leaves(part, f"{path}/{name}").items()}


def compare(theirs: dict, ours: dict) -> list[Check]:
    """Section by section; a value that only one of them has is a difference."""
    checks = []
    for section, title in TITLES.items():
        left, right = leaves(theirs[section]), leaves(ours[section])
        missing = object()
        differences = [
            f"{path}: {left.get(path)!r}, minibed {right.get(path)!r}"
            for path in {**left, **right}
            if left.get(path, missing) != right.get(path, missing)
        ]
        checks.append(Check(title, len({**left, **right}), differences))
    return checks


def parity(copy: Attached) -> list[Check]:
    """Run both hosts and compare everything."""
    options = {"options": ("--everything",), "environment": copy.environment}
    return compare(
        observed("domainbed", copy.path, ROOT, **options), observed("domainbed_domainfusion.minibed", ROOT, **options)
    )


def table(checks: list[Check]) -> str:
    """The checks as Markdown, with the first difference of each that has one."""

    def outcome(check: Check) -> str:
        found = check.differences
        return f"{len(found)} differ, the first: {found[0]}" if found else "equal"

    rows = [f"| {check.title} | {check.compared:,} | {outcome(check)} |" for check in checks]
    return "\n".join(["| DomainBed against minibed | values compared | |", "|---|---:|---|", *rows])


def main() -> int:
    if obstacle() is not None:
        raise SystemExit(obstacle())
    with tempfile.TemporaryDirectory() as folder:
        checks = parity(Attached(Path(folder)))
    print(table(checks))
    return any(check.differences for check in checks)


if __name__ == "__main__":
    sys.exit(main())
