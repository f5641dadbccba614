"""Replacements for data and weights that are not on this machine."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from domainbed_domainfusion.data.benchmarks import BENCHMARKS
from domainbed_domainfusion.diffusion.source import check_folder
from domainbed_domainfusion.estimate import Data, StandIns, counting, stand_ins
from domainbed_domainfusion.hosting import host


def test_pictures_in_a_benchmarks_layout(tmp_path):
    stand_ins.write_pictures(BENCHMARKS["PACS"], tmp_path, 64)
    dataset = host.datasets.PACS(str(tmp_path), [0], host.hparams_registry.default_hparams("ERM", "PACS"))
    assert [len(environment) for environment in dataset] == [stand_ins.IMAGES] * 4
    assert dataset.num_classes == 7 and dataset[1][0][0].shape == (3, 224, 224)


def test_what_is_missing_is_replaced_and_noted(monkeypatch):
    """Data, diffusion model and backbone weights are replaced. The temporary folders are deleted afterwards."""
    monkeypatch.setattr(stand_ins, "ldm_is_available", lambda hparams: False)
    hparams = {**host.hparams_registry.default_hparams("DomainFusion", "PACS"), "backbone": "resnet50"}
    args = {"dataset": "PACS", "algorithm": "DomainFusion", "test_envs": [0], "holdout_fraction": 0.2, "data_dir": "d"}
    made = counting.count(args, hparams, BENCHMARKS["PACS"].images)
    with ExitStack() as stack:
        replaced = StandIns({"PACS": Data(BENCHMARKS["PACS"].images, True)}, stack)
        spec = replaced.spec(made, [made])
        check_folder(Path(spec["hparams"]["ldm"]))
        assert Path(spec["data_dir"], "PACS").is_dir() and spec["random_ldm"]
        assert spec["hparams"]["pretrained"] is False and made.hparams["pretrained"] is True
        assert replaced.spec(made, [made])["hparams"] == spec["hparams"]  # the same folders for every job
    assert not Path(spec["hparams"]["ldm"]).exists() and not Path(spec["data_dir"]).exists()
    assert [note.split(" is not ")[0] for note in replaced.notes] == [
        "PACS: the folder PACS",
        "CompVis/stable-diffusion-v1-4",
    ]


def test_invariant_guidance_is_left_out_and_said(monkeypatch):
    """The calibration would train its second U-Net as long as the run does."""
    monkeypatch.setattr(stand_ins, "ldm_is_available", lambda hparams: True)
    args = {"dataset": "PACS", "algorithm": "DomainFusion", "test_envs": [0], "holdout_fraction": 0.2, "data_dir": "d"}
    hparams = {**host.hparams_registry.default_hparams("DomainFusion", "PACS"), "backbone": "resnet50"}
    job = counting.count(args, {**hparams, "invariant_steps": 10000}, BENCHMARKS["PACS"].images)
    with ExitStack() as stack:
        replaced = StandIns({"PACS": Data(BENCHMARKS["PACS"].images, False)}, stack)
        assert replaced.spec(job, [job])["hparams"]["invariant_steps"] == 0 and job.hparams["invariant_steps"] == 10000
    (note,) = replaced.notes
    assert "It is 10,000 steps of training a second U-Net on 48 images, and twice the evaluations" in note


@pytest.mark.parametrize(
    "name, changed, said",
    [
        ("DSI", {}, ["at most 300 evaluations", "1,000 steps of fine-tuning on each of 3 domains."]),
        ("DSI", {"dsi_finetune_steps": 0}, ["at most 100 evaluations", "as far as test_time_cache_gb reaches."]),
        ("DSI", {"dsi_threshold": 0}, None),
        (
            "SDA",
            {},
            ["It is 50 evaluations", "and 100 without one and 50 with one for each of 50", "15 epochs at each"],
        ),
        ("SDA", {"sda_guidance": 1.0}, ["and 50 without one"]),
        ("SDA", {"sda_weight": 0}, None),
        ("DiffusionTTA", {}, ["It is 960 evaluations of the U-Net with a gradient for each image in each evaluation."]),
        ("DiffusionTTA", {"tta_steps": 0}, None),
    ],
)
def test_the_diffusion_models_work_at_test_time_is_left_out_and_said(name, changed, said, monkeypatch):
    """It is counted from the run's own hparams. The calibration needs no diffusion model."""
    monkeypatch.setattr(stand_ins, "ldm_is_available", lambda hparams: hparams["ldm"] == "pocket")
    args = {"dataset": "PACS", "algorithm": name, "test_envs": [0], "holdout_fraction": 0.2, "data_dir": "d"}
    hparams = {**host.hparams_registry.default_hparams(name, "PACS"), "backbone": "resnet50", **changed}
    job = counting.count(args, hparams, BENCHMARKS["PACS"].images)
    with ExitStack() as stack:
        replaced = StandIns({"PACS": Data(BENCHMARKS["PACS"].images, False)}, stack)
        spec = replaced.spec(job, [job])
    assert spec["hparams"]["test_time_when"] == "last" and not spec["random_ldm"]
    if said is None:
        assert not replaced.notes
    else:
        (note,) = replaced.notes
        assert note.startswith(f"PACS {name}: the work of the diffusion model is not in these times and sizes. It is ")
        assert all(part in note for part in said)
