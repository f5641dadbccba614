"""Inside DomainBed's train.py: TrainingContext says what train does; nothing but the training in-splits is read."""

import json

import pytest

HPARAMS = {"backbone": "mnist_cnn", "batch_size": 4}


def train(attached, folder, algorithm, *arguments, dataset="DigitStyles", hparams=(), **options):
    given = json.dumps({**HPARAMS, **dict(hparams)})
    return attached.script(
        "train",
        "--algorithm",
        algorithm,
        "--dataset",
        dataset,
        "--hparams",
        given,
        "--data_dir",
        folder.parent / "data",
        "--output_dir",
        folder,
        *arguments,
        **options,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--test_envs", 0, "--steps", 3, "--seed", 7),
        (
            "--test_envs",
            1,
            3,
            "--steps",
            2,
            "--trial_seed",
            2,
            "--holdout_fraction",
            0.5,
            "--uda_holdout_fraction",
            0.4,
        ),
    ],
    ids=["one test environment", "two, with unlabeled splits"],
)
def test_the_context_is_what_train_does(attached, tmp_path, arguments):
    train(attached, tmp_path / "job", "ContextProbe", *arguments)
    seen = json.loads((tmp_path / "job" / "context.json").read_text())
    assert seen["ours"] == seen["train"]
    assert seen["seen"] > 0 and seen["foreign"] == 0
    assert seen["class_names"] == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert seen["domain_names"] == ["HPOA"[env] for env in seen["train"]["environments"]]
    last = json.loads((tmp_path / "job" / "results.jsonl").read_text().splitlines()[-1])
    assert last["step"] == seen["ours"]["total_steps"] - 1
    assert last["epoch"] == last["step"] / seen["ours"]["steps_per_epoch"]


TRIPWIRE = {
    "dataset": "TripwireDigits",
    "hparams": {"ldm": "pocket", "image_size": 32, "generation_interval": 1, "candidates": 1},
}


def test_training_and_generation_read_only_the_training_in_splits(attached, tmp_path):
    """Six steps are two epochs of the 16-image in-splits: two rounds of generation, the first over every image."""
    train(attached, tmp_path / "job", "WatchedDomainFusion", "--steps", 6, "--test_envs", 0, **TRIPWIRE)
    assert (tmp_path / "job" / "done").exists()
    assert json.loads((tmp_path / "job" / "reads.json").read_text()) >= 3 * 16


def test_the_tripwire_is_armed(attached, tmp_path):
    """An algorithm that reads the test environment does not get past its first step."""
    failed = train(
        attached, tmp_path / "job", "WatchedLeak", "--steps", 1, "--test_envs", 0, check=False, dataset="TripwireDigits"
    )
    assert failed.returncode != 0
    assert "tripwire: example 0 is not in a training in-split" in (tmp_path / "job" / "err.txt").read_text()


def test_bad_hparams_stop_a_run_before_it_begins(attached, tmp_path):
    failed = train(attached, tmp_path / "job", "DomainFusion", check=False, hparams={"candidate": 3})
    assert failed.returncode == 1
    assert "Nobody knows the hparam 'candidate' in --hparams: did you mean 'candidates'?" in failed.stderr
    assert not (tmp_path / "job" / "results.jsonl").exists()
