"""Damaged and unfinished sweep folders: the page is still written and says what is missing."""

import json
import shlex
from pathlib import Path

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.report import write
from domainbed_domainfusion.report.content import content_of
from domainbed_domainfusion.report.gaps import find_gaps
from domainbed_domainfusion.report.jobs import read_sweep
from domainbed_domainfusion.sweeping.host_scripts import command_options

from .made_up import write_job, write_sweep


def page(folder, tmp_path) -> str:
    return write(folder, tmp_path / "out" / "report.html")[0].read_text()


def test_a_half_written_line_is_left_out_and_named(tmp_path):
    jobs = write_sweep(tmp_path / "sweep", algorithms=("ERM",))
    results = jobs[1] / "results.jsonl"
    results.write_text(results.read_text()[:-100])
    sweep = read_sweep(tmp_path / "sweep")
    assert sweep.damage == [f"{jobs[1].name}/results.jsonl, line 7 is not whole JSON (cut off while it was written?)."]
    assert sorted(len(job.rows) for job in sweep.jobs) == [6, 7, 7, 7]
    assert "line 7 is not whole JSON" in page(tmp_path / "sweep", tmp_path)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda row: row.pop("env0_in_acc"), "lacks env0_in_acc"),
        (lambda row: row.update(env1_out_acc=None), "lacks a number for env1_out_acc"),
        (lambda row: row.update(env2_in_acc=float("nan")), "lacks a number for env2_in_acc"),
        (lambda row: row["args"].pop("trial_seed"), "lacks args.trial_seed"),
        (lambda row: row.pop("args"), "lacks the run's args"),
        (lambda row: row.update(step="three"), "lacks step"),
    ],
)
def test_a_row_that_the_selection_methods_cannot_use_is_left_out(tmp_path, change, reason):
    job = write_job(tmp_path, "PACS", "ERM", [0])
    lines = (job / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    change(row)
    lines[2] = json.dumps(row)
    (job / "results.jsonl").write_text("\n".join(lines) + "\n")
    sweep = read_sweep(tmp_path)
    assert len(sweep.jobs[0].rows) == 6
    assert sweep.damage == [f"{job.name}/results.jsonl, line 3 {reason}."]


def test_no_finished_run_still_gives_a_page(tmp_path):
    jobs = write_sweep(tmp_path / "sweep", algorithms=("ERM",))
    for job in jobs:
        (job / "results.jsonl").unlink()
        (job / "done").unlink()
        (job / "err.txt").write_text("Traceback (most recent call last):\nRuntimeError: out of memory <1>\n\n")
    text = page(tmp_path / "sweep", tmp_path)
    assert "No run has written a result row yet" in text
    assert text.count("RuntimeError: out of memory &lt;1&gt;") == 4
    assert "ERM on PACS, test_envs 2, trial 0, hparams seed 0" in text


def test_an_empty_job_folder_is_an_unfinished_job(tmp_path):
    write_sweep(tmp_path / "sweep", algorithms=("ERM",))
    (tmp_path / "sweep" / ("0" * 32)).mkdir()
    (tmp_path / "sweep" / "notes").mkdir()
    unfinished = read_sweep(tmp_path / "sweep").unfinished
    assert [job.name for job in unfinished] == ["0" * 32]
    assert "err.txt says nothing" in page(tmp_path / "sweep", tmp_path)


def test_numbers_from_an_unfinished_run_are_marked(tmp_path):
    jobs = write_sweep(tmp_path / "sweep", algorithms=("ERM",))
    (jobs[0] / "done").unlink()
    text = page(tmp_path / "sweep", tmp_path)
    assert text.count("from an unfinished run") == 2  # training-domain validation and oracle
    (jobs[0] / "done").write_text("done")
    assert "from an unfinished run" not in page(tmp_path / "sweep", tmp_path)


def test_mixed_step_counts_are_reported(tmp_path):
    for env in range(4):
        write_job(tmp_path, "PACS", "ERM", [env], steps=301)
        write_job(tmp_path, "PACS", "SAM", [env], steps=101)
    part = content_of(read_sweep(tmp_path)).datasets[0]
    assert part.notes == (
        "Finished runs differ in their number of steps (4 of 101, 4 of 301 steps): rows are not on equal terms.",
    )


def test_the_single_step_of_a_method_that_learns_nothing_is_no_mixed_step_count(tmp_path):
    for env in range(4):
        write_job(tmp_path, "PACS", "ERM", [env], steps=301)
        job = write_job(tmp_path, "PACS", "SAM", [env], steps=2)
        row = json.loads((job / "results.jsonl").read_text().splitlines()[0])
        del row["loss"]
        (job / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert content_of(read_sweep(tmp_path)).datasets[0].notes == ()


def test_unknown_algorithms_and_datasets_are_shown_after_the_known_ones(tmp_path):
    write_sweep(tmp_path, algorithms=("ERM",))
    for env in range(4):
        job = write_job(tmp_path, "Somewhere", "ERM", [env])
        (job / "results.jsonl").write_text((job / "results.jsonl").read_text().replace('"ERM"', '"Ours<b>"'))
    content = content_of(read_sweep(tmp_path))
    assert [part.name for part in content.datasets] == ["PACS", "Somewhere"]
    unknown = content.datasets[1].tables[0]
    assert unknown.environments == ("env0", "env1", "env2", "env3")
    assert [row.algorithm for row in unknown.rows] == ["Ours<b>"] and unknown.rows[0].average > 0
    assert "Ours&lt;b&gt;" in page(tmp_path, tmp_path)


def test_a_missing_cell_is_named_with_the_command_that_fills_exactly_it(tmp_path):
    hparams = json.dumps({"lr": 0.1, "note": "it's"})
    jobs = write_sweep(tmp_path, trials=2, hparams_seeds=2, algorithms=("ERM", "SAM"), hparams=hparams)
    missing = jobs[5]
    for file in sorted(missing.rglob("*"), reverse=True):
        file.unlink()
    missing.rmdir()
    [gap] = find_gaps(read_sweep(tmp_path))
    assert (gap.dataset, gap.algorithm, gap.jobs) == ("PACS", "ERM", ("test_envs 1, trial 0, hparams seed 1",))
    assert len(gap.commands) == 1
    # The host's own sweep resolves the command's arguments to jobs. All of them but the missing one must exist.
    expected = [
        "--datasets",
        "PACS",
        "--algorithms",
        "ERM",
        "--output_dir",
        str(tmp_path),
        "--command_launcher",
        "local",
        "--n_trials",
        "2",
        "--n_hparams",
        "2",
        "--single_test_envs",
        "--data_dir",
        "data",
        "--steps",
        "301",
        "--hparams",
        hparams,
    ]
    assert shlex.split(gap.commands[0]) == ["domainfusion", "sweep", "launch", *expected]


def test_a_started_job_must_be_deleted_before_it_is_launched_again(tmp_path):
    jobs = write_sweep(tmp_path, algorithms=("ERM",))
    (jobs[2] / "done").unlink()
    [gap] = find_gaps(read_sweep(tmp_path))
    assert [command.split()[2] for command in gap.commands] == ["delete_incomplete", "launch"]


def test_the_command_for_missing_cells_gives_the_jobs_their_own_names(tmp_path, run_host_script):
    """Folder names are hashes of the arguments: the host's sweep must find the finished jobs under the command's."""
    sweep = tmp_path / "sweep"
    arguments = [
        "--datasets",
        "DigitStyles",
        "--algorithms",
        "ERM",
        "--output_dir",
        str(sweep),
        "--data_dir",
        "a b",
        "--command_launcher",
        "dummy",
        "--n_trials",
        "1",
        "--n_hparams",
        "2",
        "--single_test_envs",
        "--steps",
        "3",
        "--hparams",
        '{"lr": 0.01}',
        "--skip_confirmation",
    ]
    _play_all_but_one(run_host_script("sweep", "launch", *arguments))
    [gap] = find_gaps(read_sweep(sweep))
    command = shlex.split(gap.commands[0])
    assert command[2] == "delete_incomplete" and len(gap.jobs) == 1
    command[command.index("local")] = "dummy"
    assert "8 jobs: 7 done, 1 incomplete, 0 not launched." in run_host_script(
        "sweep", "launch", *command[3:], "--skip_confirmation"
    )


def _play_all_but_one(printed: str) -> None:
    """Write what train would have written for each printed job, and leave the last one without its `done`."""
    commands = [line.split(": ", 1)[1] for line in printed.splitlines() if line.startswith("Dummy launcher")]
    assert len(commands) == 8
    for number, command in enumerate(commands):
        options = command_options(command)
        numbers = {name: int(options[name]) for name in ("steps", "trial_seed", "hparams_seed")}
        args = {
            **options,
            **numbers,
            "test_envs": [int(env) for env in options["test_envs"].split()],
            "holdout_fraction": float(options["holdout_fraction"]),
        }
        accuracies = {f"env{env}_{split}_acc": 0.5 for env in range(4) for split in ("in", "out")}
        folder = Path(options["output_dir"])
        (folder / "results.jsonl").write_text(json.dumps({"args": args, "step": 2, **accuracies}) + "\n")
        if number < 7:
            (folder / "done").write_text("done")


def test_bad_input_gives_one_sentence(tmp_path):
    with pytest.raises(InputError, match="^No sweep folder at .*: give --input_dir the --output_dir of a sweep.$"):
        write(tmp_path / "nowhere", tmp_path / "report.html")
    with pytest.raises(InputError, match="^No job in .*: a sweep's --output_dir holds one folder per job"):
        write(tmp_path, tmp_path / "report.html")
    with pytest.raises(InputError, match="is not the name of a page: give one that ends in .html.$"):
        write(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_folder_is_only_read(sweep_folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in sweep_folder.rglob("*")}
    write(sweep_folder, tmp_path / "report.html")
    assert {path: path.stat().st_mtime_ns for path in sweep_folder.rglob("*")} == before
    assert host.NAME in (tmp_path / "report.html").read_text()
