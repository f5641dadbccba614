"""What `make test-lowest` installs, and that every requirement of setup.cfg has an oldest version."""

import pytest

from .lower_bounds import SETUP, lower_bounds

SMALL = """\
[options]
install_requires =
    torch>=2.5
    # why this one
    pillow >= 10.1, <13
[options.extras_require]
dev =
    pytest>=7.4
    ruff>=0.17.6,<0.18
"""


def test_every_requirement_is_pinned_to_its_oldest_version():
    assert lower_bounds(SMALL) == ["torch==2.5", "pillow==10.1", "pytest==7.4"]


def test_a_requirement_without_an_oldest_version_is_named():
    with pytest.raises(ValueError, match="'torch<3' in setup.cfg has no lower bound: write it as name>=version"):
        lower_bounds(SMALL.replace("torch>=2.5", "torch<3"))


def test_all_of_setup_cfg_has_one():
    pinned = lower_bounds(SETUP.read_text())
    assert {"torch", "diffusers", "pytest"} <= {line.split("==")[0] for line in pinned}
