"""`benchmarks.sampler_levers`: what is compared with what, in a run of a few images of the pocket model."""

import json
import sys

import pytest

from benchmarks import early_choice, sampler_levers
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.pocket import digit_styles


def test_each_lever_stands_beside_the_candidates_without_one(monkeypatch, tmp_path):
    monkeypatch.setattr(digit_styles, "PER_CLASS", 4)
    monkeypatch.setattr(early_choice, "EPOCH", 2)
    monkeypatch.setattr(sampler_levers, "ROUNDS", 1)
    monkeypatch.setattr(sampler_levers, "SCHEDULES", ({"denoising_steps": 4, "strength": 1.0},))
    chosen = ("none", "reuse_interval 2", "guidance_interval 0.5")
    monkeypatch.setattr(sampler_levers, "LEVERS", {name: sampler_levers.LEVERS[name] for name in chosen})
    output = tmp_path / "levers.json"
    words = ["sampler_levers", "--data_dir", str(tmp_path), "--output", str(output), "--images", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "--training_steps", "1"])
    assert sampler_levers.main() == 0
    (table,) = json.loads(output.read_text())["tables"]
    assert [(row["lever"], row["evaluations"]) for row in table] == list(zip(chosen, ("100 %", "50 %", "75 %")))
    none, *levers = table
    assert (none["PSNR"], none["same content"], none["same style"]) == ("inf", "100 %", "100 %")
    assert all(5 < float(row["PSNR"]) < 60 for row in levers)


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be at least 1"):
        sampler_levers.run(tmp_path, 0, 1)
