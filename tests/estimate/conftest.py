"""What the estimate's tests share."""

import sys
import time

import pytest

from domainbed_domainfusion.hosting import host


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What an estimate changes in this process: where the host's sweep was imported, and the hub's offline switch."""
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
