"""The arguments that the benchmarks with a program of their own share."""

import argparse
from pathlib import Path

from domainbed_domainfusion.errors import InputError


def arguments(document: str, data: str | None = "where DigitStyles is or will be") -> argparse.ArgumentParser:
    """A parser with --output and, unless its help `data` is None, --data_dir.

    The first paragraph of `document` describes the program.
    """
    parser = argparse.ArgumentParser(description=document.split("\n\n")[0])
    if data is not None:
        parser.add_argument("--data_dir", type=Path, required=True, help=data)
    parser.add_argument("--output", type=json_file, required=True, help="a JSON file; the tables go beside it as .md")
    return parser


def json_file(text: str) -> Path:
    """The path of the results. Raises InputError without the suffix .json, which the tables' file has in its place."""
    path = Path(text)
    if path.suffix != ".json":
        raise InputError(f"--output must end in .json, because the table goes to a .md beside it: {path}.")
    return path
