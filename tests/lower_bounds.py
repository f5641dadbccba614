"""The oldest versions that setup.cfg allows, as pip's requirements: `python tests/lower_bounds.py > lowest.txt`.

Needs the standard library only: it runs before anything is installed.
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"
NEEDED_BY_TESTS = ("pytest",)


def lower_bounds(setup: str) -> list[str]:
    """`torch==2.5` for `torch>=2.5`, for all of install_requires and the test runner of the extra `dev`.

    setup: the text of setup.cfg. Raises ValueError for a requirement without a lower bound.
    """
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read_string(setup)
    required = _lines(parsed["options"]["install_requires"])
    tools = [line for line in _lines(parsed["options.extras_require"]["dev"]) if _name(line) in NEEDED_BY_TESTS]
    return [_lowest(line) for line in required + tools]


def _lines(block: str) -> list[str]:
    return [line.strip() for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def _lowest(requirement: str) -> str:
    bound = re.search(r">=\s*([\d.]+)", requirement)
    if bound is None:
        raise ValueError(f"{requirement!r} in setup.cfg has no lower bound: write it as name>=version.")
    return f"{_name(requirement)}=={bound[1]}"


if __name__ == "__main__":
    print("\n".join(lower_bounds(SETUP.read_text())))
