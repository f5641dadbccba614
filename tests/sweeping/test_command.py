"""The three-algorithm sweep end to end at tiny size, by the host's own commands in child processes."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated.saved_rounds import SavedRun
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.sweeping import sweep_files

from .. import forks

ALGORITHMS = ["ERM", "SAM", "DomainFusion"]


def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return forks.run(f"{host.NAME}.scripts.{name}", *arguments)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, tiny_ldm):
    folder = tmp_path_factory.mktemp("sweep")
    hparams = {"ldm": tiny_ldm, "batch_size": 4, "denoising_steps": 3, "generation_interval": 1, "ld_images": 2}
    done = script(
        "sweep",
        "launch",
        "--algorithms",
        *ALGORITHMS,
        "--datasets",
        "Debug28",
        "--single_test_envs",
        "--n_hparams",
        "1",
        "--n_trials",
        "1",
        "--steps",
        "5",
        "--command_launcher",
        "cores",
        "--skip_confirmation",
        "--data_dir",
        "unused",
        "--output_dir",
        str(folder),
        "--hparams",
        json.dumps(hparams),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def jobs(folder: Path) -> list[tuple[Path, dict]]:
    rows = [(path.parent, json.loads(path.read_text().splitlines()[-1])) for path in folder.glob("*/results.jsonl")]
    return sorted(rows, key=lambda job: (job[1]["args"]["algorithm"], job[1]["args"]["test_envs"]))


def test_nine_jobs_are_done(sweep):
    assert len(jobs(sweep)) == 9 and all((folder / "done").exists() for folder, _ in jobs(sweep))


def test_the_hosts_table_shows_the_three_algorithms(sweep):
    table = script("collect_results", "--input_dir", str(sweep)).stdout
    assert "Total records: 18" in table  # 9 jobs, evaluated at steps 0 and 4
    rows = [line.split()[0] for line in table.split("model selection method: training-domain")[1].splitlines() if line]
    assert [name for name in rows if name in ALGORITHMS][:3] == ALGORITHMS


def test_domainfusion_generated_in_the_launched_processes(sweep):
    for folder, row in jobs(sweep):
        if row["args"]["algorithm"] == "DomainFusion":
            gallery = json.loads((folder / "generated" / "gallery.json").read_text())
            rounds = [version["round"] for version in gallery["images"][0]["versions"]]
            assert rounds == [0, 1, 2]  # in-splits of 13 images: an epoch is 3.25 steps, so rounds at steps 0 and 4
            assert sorted(SavedRun.open(folder).rounds) == [1, 2]
            sources = {"0", "1", "2"} - {str(row["args"]["test_envs"][0])}
            assert {image["domain"] for image in gallery["images"]} == sources


def test_models_hold_the_classifier_alone(sweep):
    models = {
        row["args"]["algorithm"]: torch.load(folder / "model.pkl", weights_only=True)["model_dict"]
        for folder, row in jobs(sweep)
    }
    shapes = [{name: tuple(weight.shape) for name, weight in models[name].items()} for name in ALGORITHMS]
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_bad_hparam_stops_the_sweep_and_the_job(sweep, tmp_path):
    for name, arguments in (
        (
            "sweep",
            [
                "launch",
                "--command_launcher",
                "dummy",
                "--data_dir",
                "x",
                "--output_dir",
                str(tmp_path / "s"),
                "--skip_confirmation",
            ],
        ),
        ("train", ["--output_dir", str(tmp_path / "t"), "--dataset", "Debug28"]),
    ):
        failed = script(name, *arguments, "--hparams", '{"candidate": 3}')
        assert failed.returncode != 0
        assert failed.stderr.strip().splitlines() == [
            "Nobody knows the hparam 'candidate' in --hparams: did you mean 'candidates'?"
        ]


def test_a_dataset_without_environment_names_cannot_be_swept(tmp_path, monkeypatch):
    nameless = type("Nameless", (host.datasets.Debug28,), {"ENVIRONMENTS": None})
    monkeypatch.setattr(host.datasets, "Nameless", nameless, raising=False)
    (tmp_path / "sweep.txt").write_text("# Jobs: 1\n[a]\n--datasets Nameless\n--algorithms ERM\n")
    with pytest.raises(InputError, match="line 3: Nameless does not name its environments.*: add the list"):
        sweep_files.read(tmp_path / "sweep.txt")
