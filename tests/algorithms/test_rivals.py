"""What the methods that papers compare with have in common: the train script, resuming, counting, what they read."""

import json
import runpy
import sys

import pytest

from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting import hparams as table

from ..conftest import WiredDigits
from ..resuming import in_process

VARIANTS = [
    ("DRM", {}),
    ("DRM", {"drm_predict": "weighted"}),
    ("HGP", {}),
    ("Hutchinson", {"hutchinson_probes": 4}),
    ("AdvStyle", {}),
    ("AdaNPC", {"adanpc_queue": 20}),
    ("ITTA", {}),
    ("PEGO", {"backbone": "tiny_vit"}),
]
each_variant = pytest.mark.parametrize("name, hparams", VARIANTS, ids=str)


def test_all_of_them_are_here():
    assert {name for name, _ in VARIANTS} == set(table.RIVALS)
    assert set(table.RIVALS) <= set(host.algorithms.ALGORITHMS)


@each_variant
def test_the_hosts_train_script_runs_it(name, hparams, monkeypatch, tmp_path, as_script):
    monkeypatch.setattr(host.datasets.MultipleDomainDataset, "N_WORKERS", 0)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    as_script("train", *("--dataset", "Debug28", "--algorithm", name, "--output_dir", str(tmp_path)),
              *("--steps", "3", "--checkpoint_freq", "1", "--skip_model_save"),
              *("--hparams", json.dumps({"batch_size": 8, **hparams})))  # fmt: skip
    runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["loss"] > 0 for row in rows)


@each_variant
def test_it_goes_on_exactly_where_it_was_interrupted(name, hparams):
    assert in_process.differences(*in_process.whole_and_restored(name, steps=8, after=3, **hparams)) == []


@each_variant
def test_every_step_counts_alike(name, hparams):
    args = {"dataset": "Debug28", "algorithm": name, "test_envs": [0], "holdout_fraction": 0.2, "steps": 7}
    values = {**host.hparams_registry.default_hparams(name, "Debug28"), **hparams}
    assert counting.count(args, values, [20, 20, 20]).raw_steps == 7


@each_variant
def test_nothing_of_a_test_environment_or_a_validation_split_is_read(name, hparams, host_run):
    r = host_run(name, dataset=WiredDigits, test_env=1, **hparams)
    r.update(6)
    for i, environment in enumerate(r.dataset.datasets):
        assert environment.read <= set(r.in_splits[i].keys)
        assert bool(environment.read) is (i != 1)
