"""Fixtures of the tests that need a DomainBed checkout."""

from pathlib import Path

import pytest

from .attached import MISSING, Attached, checkout


@pytest.fixture(scope="session")
def domainbed_dir() -> Path:
    """The checkout that DOMAINBED_DIR names; skips if there is none."""
    if checkout() is None:
        pytest.skip(MISSING)
    return checkout()


@pytest.fixture(scope="session")
def attached(domainbed_dir, tmp_path_factory) -> Attached:
    """An attached copy of the checkout, with the small data and the probes of `probes.py`."""
    copy = Attached(tmp_path_factory.mktemp("upstream"))
    copy.add("import tests.upstream.probes  # noqa")
    return copy
