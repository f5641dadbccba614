"""DomainBed's own commands in an attached checkout: a launched sweep, its tables, its bookkeeping."""

import json
import shlex
import shutil

import pytest

FAST = json.dumps({"backbone": "mnist_cnn", "batch_size": 8, "generation_interval": 1})
ALGORITHMS = ("ERM", "SAM", "DomainFusion")
SWEEP = (
    "--algorithms",
    *ALGORITHMS,
    "--datasets",
    "DigitStyles",
    "--n_hparams",
    1,
    "--n_trials",
    1,
    "--steps",
    4,
    "--single_test_envs",
    "--skip_confirmation",
    "--hparams",
    FAST,
)


@pytest.fixture(scope="module")
def sweep(attached, tmp_path_factory):
    """A sweep of three algorithms over four environments by the local launcher; (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("sweep")
    done = attached.script(
        "sweep",
        "launch",
        *SWEEP,
        "--command_launcher",
        "local",
        "--data_dir",
        folder / "data",
        "--output_dir",
        folder / "runs",
    )
    return folder, done.stdout


def command(attached, folder, verb, launcher="dummy"):
    return attached.script(
        "sweep",
        verb,
        *SWEEP,
        "--command_launcher",
        launcher,
        "--data_dir",
        folder / "data",
        "--output_dir",
        folder / "runs",
    ).stdout


def test_every_job_is_done(attached, sweep):
    folder, printed = sweep
    assert "12 jobs: 0 done, 0 incomplete, 12 not launched." in printed and "Launched 12 jobs!" in printed
    jobs = list((folder / "runs").iterdir())
    assert len(jobs) == 12
    assert all((job / "done").exists() for job in jobs), [(job / "err.txt").read_text() for job in jobs]
    rows = [json.loads(line) for job in jobs for line in (job / "results.jsonl").read_text().splitlines()]
    assert {(row["args"]["algorithm"], *row["args"]["test_envs"]) for row in rows} == {
        (algorithm, env) for algorithm in ALGORITHMS for env in range(4)
    }
    assert sum(row.get("generated_images", 0) for row in rows) > 0
    assert "12 jobs: 12 done, 0 incomplete, 0 not launched." in command(attached, folder, "launch")


def test_collect_results_shows_the_three_algorithms(attached, sweep):
    folder, _ = sweep
    printed = attached.script("collect_results", "--input_dir", folder / "runs").stdout
    table = printed.split("-------- Dataset: DigitStyles, model selection method: training-domain validation set\n")[1]
    lines = [line.split("  ") for line in table.splitlines()[:4]]
    assert [line[0].strip() for line in lines] == ["Algorithm", *ALGORITHMS]
    assert [cell.strip() for cell in lines[0] if cell.strip()] == ["Algorithm", "H", "P", "O", "A", "Avg"]
    assert not any("X" in cell for line in lines for cell in line)
    print(f"\n{printed}")


def test_list_top_hparams_shows_ours(attached, sweep):
    folder, _ = sweep
    printed = attached.script(
        "list_top_hparams",
        "--input_dir",
        folder / "runs",
        "--algorithm",
        "DomainFusion",
        "--dataset",
        "DigitStyles",
        "--test_env",
        2,
    ).stdout
    assert "lambda3: 0.5" in printed and "backbone: mnist_cnn" in printed


def test_incomplete_jobs_are_deleted_and_launched_again(attached, sweep, tmp_path):
    folder, _ = sweep
    copy = tmp_path / "copy"
    shutil.copytree(folder / "runs", copy / "runs")
    broken = sorted((copy / "runs").glob("*/done"))[3]
    broken.unlink()
    # job names depend on the arguments alone, so the copied folder is the same sweep
    arguments = (*SWEEP, "--command_launcher", "dummy", "--data_dir", folder / "data", "--output_dir", copy / "runs")
    assert "12 jobs: 11 done, 1 incomplete, 0 not launched." in attached.script("sweep", "launch", *arguments).stdout
    assert "Deleted 1 jobs!" in attached.script("sweep", "delete_incomplete", *arguments).stdout
    printed = attached.script("sweep", "launch", *arguments).stdout
    assert printed.count("Dummy launcher:") == 1 and broken.parent.name in printed.split("Dummy launcher:")[1]


def test_either_host_collects_the_folder_alike(attached, sweep):
    folder, _ = sweep
    for options in ((), ("--latex",)):
        theirs = attached.script("collect_results", "--input_dir", folder / "runs", *options).stdout
        ours = attached.minibed("collect_results", "--input_dir", folder / "runs", *options).stdout
        assert theirs == ours and theirs.count("\n") > 20


def test_a_dry_run_of_a_sweep_file_lists_what_domainbed_would_launch(attached, tmp_path):
    """The printed command, run by DomainBed itself with its dummy launcher, prints the same jobs."""
    file = tmp_path / "small.txt"
    file.write_text(
        "# Jobs: 12\n[small]\n--algorithms ERM SAM DomainFusion\n--datasets PACS\n--single_test_envs\n"
        '--n_trials 1\n--n_hparams 1\n--hparams \'{"backbone": "resnet50", "freeze_bn": true}\'\n'
    )
    printed = attached.python(
        "domainbed_domainfusion.cli", "sweep", "--dry-run", file, "--output_dir", tmp_path / "runs"
    ).stdout.splitlines()
    python, flag, module, *arguments = shlex.split(printed[1])
    assert module == "domainbed.scripts.sweep"
    theirs = attached.python(module, *arguments, "--command_launcher", "dummy", "--skip_confirmation").stdout
    assert theirs.splitlines()[:13] == printed[3:16] and printed[15].startswith("12 jobs: 0 done, 0 incomplete")
