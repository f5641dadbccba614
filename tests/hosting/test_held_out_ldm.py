"""The hparam `ldm` with `{test_envs}`: each run gets the diffusion model that has not seen its test environments."""

import json
import shutil
from contextlib import ExitStack

import pytest
import torch

from domainbed_domainfusion.algorithms.domainfusion import DomainFusion
from domainbed_domainfusion.algorithms.zero_shot import DiffusionClassifier
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import Data, StandIns, counting
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.hosting.held_out_ldm import with_ldm_of_run
from domainbed_domainfusion.pocket import LDM_FOLDER
from domainbed_domainfusion.report.figures.run import read_run
from domainbed_domainfusion.runs.trained_model import TrainedModel

from ..report.made_up import write_job

WITHOUT = "ldms/without-{test_envs}"


@pytest.mark.parametrize(
    "dataset, test_envs, name",
    [("PACS", [0], "A"), ("PACS", [3, 0], "A+S"), ("TerraIncognita", [1], "L38"), ("DigitStyles", [0, 2], "H+O")],
)
def test_the_names_are_those_of_the_tables(dataset, test_envs, name):
    given = {"ldm": WITHOUT, "strength": 0.8}
    assert with_ldm_of_run(given, dataset, test_envs) == {"ldm": f"ldms/without-{name}", "strength": 0.8}
    assert given["ldm"] == WITHOUT


@pytest.mark.parametrize("hparams", [{"ldm": "pocket"}, {}, {"ldm": "models/{other}"}])
def test_another_value_stays_as_it_is(hparams):
    assert with_ldm_of_run(hparams, "NoDataset", [7]) == hparams


@pytest.mark.parametrize("dataset, test_envs", [("PACS", [4]), ("PACS", []), ("NoDataset", [0])])
def test_an_environment_without_a_name(dataset, test_envs):
    with pytest.raises(InputError, match="name the diffusion model itself"):
        with_ldm_of_run({"ldm": WITHOUT}, dataset, test_envs)


@pytest.mark.parametrize("algorithm", [DomainFusion, DiffusionClassifier])
def test_a_run_looks_for_the_model_of_its_own_test_environment(algorithm, tmp_path, as_script, monkeypatch):
    """As in the host's train script. The other environment's model does not exist, and is asked for by its name."""
    monkeypatch.setattr(context, "require_run", lambda: None)  # no data is needed to build the algorithms
    shutil.copytree(LDM_FOLDER, tmp_path / "without-P")
    values = host.hparams_registry.default_hparams(algorithm.__name__, "DigitStyles")
    values.update(ldm=str(tmp_path / "without-{test_envs}"), backbone="mnist_cnn")

    def build(environment):
        as_script("train", "--dataset", "DigitStyles", "--test_envs", environment)
        return algorithm((3, 32, 32), 10, 3, json.loads(json.dumps(values)))

    assert build("1").hparams["ldm"] == str(tmp_path / "without-P")
    with pytest.raises(InputError, match="without-A"):
        build("3")


def test_what_reads_a_run_or_a_job_names_the_model_of_its_test_environment(tmp_path):
    """A trained model, the figures of a run, and an estimate. What a run leaves holds the hparam as it was given."""
    pkl = tmp_path / "model.pkl"
    args = {"algorithm": "DomainFusion", "dataset": "PACS", "test_envs": [3]}
    shape = {"model_input_shape": (3, 32, 32), "model_num_classes": 7, "model_num_domains": 3, "model_dict": {}}
    torch.save({"args": args, "model_hparams": {"ldm": WITHOUT}, **shape}, pkl)
    assert TrainedModel.read(pkl).hparams["ldm"] == "ldms/without-S"

    folder = write_job(tmp_path / "sweep", "DigitStyles", "DomainFusion", [1])
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["hparams"]["ldm"] = WITHOUT
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_run(folder).hparams["ldm"] == "ldms/without-P"

    hparams = {**host.hparams_registry.default_hparams("ERM", "PACS"), "backbone": "resnet50", "ldm": WITHOUT}
    args = {**args, "algorithm": "ERM", "holdout_fraction": 0.2, "data_dir": "d", "test_envs": [2]}
    job = counting.count(args, hparams, (20, 20, 20, 20))
    with ExitStack() as stack:
        spec = StandIns({"PACS": Data((20, 20, 20, 20), False)}, stack).spec(job, [job])
    assert spec["hparams"]["ldm"] == "ldms/without-P" and job.hparams["ldm"] == WITHOUT
