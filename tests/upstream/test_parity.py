"""minibed against the real DomainBed, now: everything equal to the bit (`-s` shows the table)."""

import json
import tempfile
from pathlib import Path

from ..minibed.record import HERE
from .attached import Attached
from .parity import compare, leaves, parity, table

TWO_HOSTS = (
    "--dataset",
    "Debug28",
    "--algorithm",
    "ERM",
    "--steps",
    3,
    "--checkpoint_freq",
    1,
    "--test_envs",
    2,
    "--seed",
    3,
    "--hparams",
    '{"batch_size": 4}',
)


def test_everything_is_equal(domainbed_dir, tmp_path):
    """In a copy without the probes, which change DigitStyles."""
    checks = parity(Attached(tmp_path))
    print("\n" + table(checks))
    assert {check.title: check.differences[:3] for check in checks if check.differences} == {}
    assert sum(check.compared for check in checks) > 15_000


def test_the_comparison_finds_one_changed_value():
    recorded = json.loads(Path(HERE, "recorded.json").read_text())
    sections = {**dict.fromkeys(("hparams of ours", "ResNet-50", "SAM", "PACS, ResNet-18"), 0), **recorded}
    changed = json.loads(json.dumps(sections))
    changed["tables"]["text"] = changed["tables"]["text"].replace("+/-", "+-", 1)
    del changed["train"][0]["rows"][0]["loss"]
    differing = [check for check in compare(sections, changed) if check.differences]
    assert [len(check.differences) for check in differing] == [1, 1]
    assert len(leaves(recorded)) > 5_000


def test_a_run_with_loader_processes_is_equal(attached):
    """As users run it: the hosts' own command lines, eight worker processes a loader."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = []
        for name, run in (("theirs", attached.script), ("ours", attached.minibed)):
            output = Path(folder, name)
            run("train", *TWO_HOSTS, "--output_dir", output)
            rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
            for row in rows:
                del row["step_time"], row["args"]["output_dir"]
            printed = [line for line in (output / "out.txt").read_text().splitlines() if "output_dir" not in line]
            settings = printed[: next(i for i, line in enumerate(printed) if line.startswith("env0_in_acc"))]
            outputs.append((rows, settings, sorted(path.name for path in output.iterdir())))
        assert outputs[0] == outputs[1] and len(outputs[0][0]) == 3


def test_either_host_collects_a_folder_of_minibed_alike(attached, tmp_path):
    arguments = (
        "launch",
        "--algorithms",
        "ERM",
        "--datasets",
        "Debug28",
        "--n_hparams",
        1,
        "--n_trials",
        1,
        "--steps",
        1,
        "--hparams",
        '{"batch_size": 4}',
        "--single_test_envs",
        "--skip_confirmation",
        "--command_launcher",
        "local",
        "--data_dir",
        tmp_path,
        "--output_dir",
        tmp_path / "runs",
    )
    attached.minibed("sweep", *arguments)
    ours = attached.minibed("collect_results", "--input_dir", tmp_path / "runs").stdout
    assert ours == attached.script("collect_results", "--input_dir", tmp_path / "runs").stdout
    assert "Dataset: Debug28" in ours and "Total records: 3" in ours
    # and DomainBed's sweep takes them for its own jobs
    assert "3 jobs: 3 done, 0 incomplete, 0 not launched." in attached.script("sweep", *arguments).stdout
