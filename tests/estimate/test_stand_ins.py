"""Replacements for data and weights that are not on this machine."""

from contextlib import ExitStack
from pathlib import Path

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


def test_the_diffusion_models_work_at_test_time_is_left_out_and_said(monkeypatch):
    """It is counted for the run's own hparams. The calibration needs no diffusion model."""
    monkeypatch.setattr(stand_ins, "ldm_is_available", lambda hparams: hparams["ldm"] == "pocket")
    args = {"dataset": "PACS", "algorithm": "DSI", "test_envs": [0], "holdout_fraction": 0.2, "data_dir": "d"}
    defaults = {**host.hparams_registry.default_hparams("DSI", "PACS"), "backbone": "resnet50"}
    said = "PACS DSI: the work of the diffusion model is not in these times and sizes. It is at most {} evaluations of "
    for changed, numbers in (
        ({}, ("300", "1,000 steps of fine-tuning on each of 3 domains")),
        ({"dsi_finetune_steps": 0}, ("100", "as far as test_time_cache_gb reaches")),
        ({"dsi_threshold": 0}, None),
    ):
        job = counting.count(args, {**defaults, **changed}, BENCHMARKS["PACS"].images)
        with ExitStack() as stack:
            replaced = StandIns({"PACS": Data(BENCHMARKS["PACS"].images, False)}, stack)
            spec = replaced.spec(job, [job])
        assert spec["hparams"]["test_time_when"] == "last" and not spec["random_ldm"]
        if numbers is None:
            assert not replaced.notes
        else:
            (note,) = replaced.notes
            assert note.startswith(said.format(numbers[0])) and note.endswith(f"{numbers[1]}.")
