"""Fixtures of the estimate's tests."""

import sys
import time

import pytest

from domainbed_domainfusion.hosting import host


@pytest.fixture(autouse=True)
def process_restored(monkeypatch):
    """Undo an estimate's changes to this process: the import of the host's sweep, sys.path and HF_HUB_OFFLINE."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(f"{host.NAME}.scripts.sweep", None)


@pytest.fixture
def spec(tiny_dataset, host_run):
    hparams = {**host.hparams_registry.default_hparams("ERM", "DigitStyles"), "batch_size": 4, "backbone": "mnist_cnn"}
    return {
        "dataset": "TinyDigits",
        "data_dir": None,
        "algorithm": "ERM",
        "test_envs": [0],
        "holdout_fraction": 0.2,
        "hparams": hparams,
        "random_ldm": False,
        "repeated": 0.1,
        "started": time.time(),
    }
