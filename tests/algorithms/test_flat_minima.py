"""What SAM, SAGM, TRAM and UDIM have in common: batch normalisation, frozen weights, the host's train script."""

import copy
import json
import runpy
import sys

import pytest
import torch
from torch import nn

from domainbed_domainfusion.hosting import host

from . import two_layers as net

VARIANTS = [
    ("SAM", {}),
    ("SAGM", {}),
    *(("TRAM", {"tram_distance": kind}) for kind in ("previous", "initial", "noised_input", "fisher")),
    *(("UDIM", {"udim_warm_up": 0.0, "udim_input": kind}) for kind in ("pixels", "style")),
]
each_variant = pytest.mark.parametrize("name, hparams", VARIANTS, ids=str)
#: The passes that move batch-norm statistics.
PASSES = {"SAM": 2, "SAGM": 1, "TRAM": 1, "UDIM": 2}


def with_norm(name, hparams):
    made = net.algorithm(name, **hparams)
    made.featurizer.append(nn.BatchNorm1d(net.HIDDEN).double())
    return made


@each_variant
def test_batch_norm_statistics_move_as_documented(name, hparams):
    """The first pass is at the raw weights and on the raw images; the twin has it alone."""
    ours = with_norm(name, hparams)
    twin = copy.deepcopy(ours.network)
    first, second = net.minibatches(2)
    ours.update(first)
    twin(net.joined(first)[0])
    norm, plain = ours.featurizer[3], twin[0][3]
    assert norm.num_batches_tracked == PASSES[name]
    assert torch.allclose(norm.running_mean, plain.running_mean, rtol=0, atol=1e-9) is (PASSES[name] == 1)
    ours.update(second)
    assert all(torch.isfinite(weight).all() for weight in ours.parameters())


@each_variant
def test_frozen_parameters_take_no_part(name, hparams):
    """What is frozen does not move, nor does it count in a norm: the features are constant here."""
    ours = with_norm(name, hparams)
    ours.featurizer.requires_grad_(False)
    before = copy.deepcopy(ours.featurizer.state_dict())
    for batch in net.minibatches(3):
        ours.update(batch)
    assert all(torch.equal(before[key], weight) for key, weight in ours.featurizer.named_parameters())
    assert not torch.equal(ours.classifier.weight, net.algorithm(name, **hparams).classifier.weight)


@pytest.mark.parametrize("name, hparams", VARIANTS[1:], ids=str)
def test_the_hosts_train_script_runs_it(name, hparams, monkeypatch, tmp_path, as_script):
    monkeypatch.setattr(host.datasets.MultipleDomainDataset, "N_WORKERS", 0)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    hparams = {**hparams, "udim_warm_up": 0.5} if name == "UDIM" else hparams
    as_script("train", *("--dataset", "Debug28", "--algorithm", name, "--output_dir", str(tmp_path)),
              *("--steps", "4", "--checkpoint_freq", "1", "--skip_model_save"),
              *("--hparams", json.dumps({"batch_size": 8, **hparams})))  # fmt: skip
    runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["loss"] > 0 for row in rows)
    if name == "UDIM":
        assert [row["inconsistency"] > 0 for row in rows] == [False, False, True, True]
    if name == "TRAM" and hparams["tram_distance"] in ("previous", "initial"):
        assert [row["trust_region"] > 0 for row in rows] == [False, True, True, True]
