"""Arms side by side: against the host's own selection methods and against sums done by hand."""

import json

import numpy as np
import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.report import results
from domainbed_domainfusion.report.compare import best_arms, compare, compare_left_out, left_out_accuracy, markdown
from domainbed_domainfusion.report.jobs import read_sweep

from .made_up import write_job, write_sweep


def test_every_arm_has_the_numbers_of_its_own_table(tmp_path):
    write_sweep(tmp_path / "full", trials=3, algorithms=("DomainFusion",))
    write_sweep(tmp_path / "baselines", trials=2, algorithms=("ERM", "SAM"))
    found = compare([tmp_path / "full", tmp_path / "baselines"])
    assert [arm.name for arm in found.arms] == ["full", "baselines: ERM", "baselines: SAM"]
    rows = [
        row for name in ("full", "baselines") for row in results.tables(read_sweep(tmp_path / name).records())[0].rows
    ]
    for arm, trials, row in zip(found.arms, (3, 2, 2), rows):
        assert arm.cells == tuple((cell.mean, cell.error) for cell in row.cells)
        assert (arm.average, arm.average_error, arm.trials) == (row.average, row.average_error, trials)
    lines = markdown(found).splitlines()
    assert "± standard error over 2 to 3 trials" in lines[0]
    assert f"| {rows[0].cells[1].mean:.1f} ± {rows[0].cells[1].error:.1f} |" in lines[4]
    full, erm = found.arms[0].average, found.arms[1].average
    assert lines[4].endswith("| +0.0 |") and lines[5].endswith(f"| {erm - full:+.1f} |") and erm < full


def test_some_environments_alone_are_averaged_alone(tmp_path):
    """Also where the other environments have no run."""
    for test_envs in ([0], [3]):
        for trial in range(3):
            write_job(tmp_path / "part", "PACS", "ERM", test_envs, trial)
    whole = compare([tmp_path / "part"])
    assert [cell is None for cell in whole.arms[0].cells] == [False, True, True, False]
    assert whole.arms[0].average is None
    part = compare([tmp_path / "part"], only=["S", "A"])
    assert part.environments == ("A", "S")
    assert part.arms[0].cells == (whole.arms[0].cells[0], whole.arms[0].cells[3])
    assert part.arms[0].average == pytest.approx((whole.arms[0].cells[0][0] + whole.arms[0].cells[3][0]) / 2)
    choices = [
        cell.choices for cell in results.tables(read_sweep(tmp_path / "part").records())[0].rows[0].cells if cell
    ]
    means = [50 * (a.test_acc + s.test_acc) for a, s in zip(*choices)]
    assert part.arms[0].average_error == pytest.approx(np.std(means) / np.sqrt(3))
    assert markdown(part).splitlines()[2] == "| arm | A | S | average | to the first |"
    with pytest.raises(InputError, match="PACS has no environment H: give some of A, C, P, S."):
        compare([tmp_path / "part"], only=["H"])
    with pytest.raises(InputError, match="takes --left_out or --only, not both"):
        cli.run(["compare", "--left_out", "--only", "A", str(tmp_path / "part")])


def test_some_trials_alone_are_those_of_a_sweep_that_has_no_others(tmp_path, capsys):
    """Also the evaluations of the diffusion model are of these trials' jobs."""
    for folder, trials in (("three", (0, 1, 2)), ("two", (0, 2))):
        for trial in trials:
            for env in range(4):
                job = write_job(tmp_path / folder / "arm", "PACS", "ERM", [env], trial)
                (job / "ldm_evaluations.json").write_text(json.dumps({"unet_evaluations": 100 * trial**2 + env}))
    (two,) = compare([tmp_path / "two" / "arm"]).arms
    assert compare([tmp_path / "three" / "arm"], trials=[0, 2]).arms == (two,)
    assert two.trials == 2 and two.evaluations == 201.5
    assert cli.main(["compare", str(tmp_path / "three" / "arm"), "--trials", "1"]) == 0
    assert "one trial" in capsys.readouterr().out
    with pytest.raises(InputError, match="No result of the trials 3 in .*arm: give others."):
        compare([tmp_path / "three" / "arm"], trials=[3])


def test_one_trial_has_no_standard_error(tmp_path):
    write_sweep(tmp_path / "a", algorithms=("ERM",))
    text = markdown(compare([tmp_path / "a"]))
    assert "validation set, one trial\n" in text and "±" not in text


def rewrite(folder, change):
    """Pass every result row of a sweep through `change(row, random generator of the job)`."""
    for file in folder.glob("*/results.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rng = np.random.default_rng([rows[0]["args"]["trial_seed"], *rows[0]["args"]["test_envs"]])
        file.write_text("".join(json.dumps(change(row, rng)) + "\n" for row in rows))


def random_accuracies(row, rng):
    return {name: rng.random() if name.endswith("_acc") else value for name, value in row.items()}


def test_left_out_accuracies_are_the_hosts_validation_accuracies(tmp_path):
    """For random accuracies. The host also needs the run that is tested on the environment alone; we do not read it."""
    write_sweep(tmp_path, pairs=True, algorithms=("DomainFusion",))
    rewrite(tmp_path, random_accuracies)
    records = read_sweep(tmp_path).records()
    pairs = records.filter(lambda record: len(record["args"]["test_envs"]) == 2)
    method = host.module("model_selection").LeaveOneOutSelectionMethod
    for env in range(4):
        theirs = method.run_acc(records.filter(lambda record, env=env: env in record["args"]["test_envs"]))
        assert left_out_accuracy(pairs, env, 4) == pytest.approx(100 * theirs["val_acc"], rel=1e-12)


def test_the_accuracy_on_the_test_environment_moves_nothing(tmp_path):
    write_sweep(tmp_path / "a", pairs=True, trials=2, algorithms=("DomainFusion",))
    rewrite(tmp_path / "a", random_accuracies)
    before = compare_left_out([tmp_path / "a"]).arms[0]

    def perfect_on_the_first(row, rng):
        return {**row, "env0_in_acc": 1.0, "env0_out_acc": 1.0}

    rewrite(tmp_path / "a", perfect_on_the_first)
    after = compare_left_out([tmp_path / "a"]).arms[0]
    assert after.cells[0] == before.cells[0]
    assert all(a > b for a, b in zip(after.cells[1:], before.cells[1:]))


def test_the_best_arm_of_each_column_is_named(tmp_path):
    for name, gain in (("low", 0.0), ("high", 0.1)):
        write_sweep(tmp_path / name, pairs=True, algorithms=("DomainFusion",))

        def changed(row, rng, gain=gain):  # `high` is better on the first environment and worse on the last
            return {**row, "env0_in_acc": row["env0_in_acc"] + gain, "env3_in_acc": row["env3_in_acc"] - 3 * gain}

        rewrite(tmp_path / name, changed)
    line = best_arms(compare_left_out([tmp_path / "low", tmp_path / "high"]))
    assert line == "Chosen where each is the test domain: A: low; C: low; P: low; S: high\n"


def test_a_missing_pair_is_a_dash_and_no_number(tmp_path):
    for pair in ([0, 1], [0, 2], [0, 3], [1, 2]):
        write_job(tmp_path / "a", "PACS", "DomainFusion", pair)
    comparison = compare_left_out([tmp_path / "a"])
    arm = comparison.arms[0]
    assert best_arms(comparison) == "Chosen where each is the test domain: A: a; C: –; P: –; S: –\n"
    assert arm.cells[0] is not None and arm.cells[1:] == (None, None, None) and arm.average is None


def test_what_cannot_be_compared_is_one_sentence(tmp_path):
    write_sweep(tmp_path / "a", algorithms=("ERM",))
    write_sweep(tmp_path / "b", dataset="OfficeHome", algorithms=("ERM",))
    with pytest.raises(InputError, match="b is a sweep on OfficeHome but those before it are on PACS: compare them"):
        compare([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(InputError, match="a has no run that left out two environments: launch its sweep without"):
        compare_left_out([tmp_path / "a"])
