"""TrainingContext against what the host's train script computes itself."""

import pytest

from domainbed_domainfusion.hosting import context, host


def test_in_splits_are_those_of_the_training_loaders(host_run):
    run = host_run("ERM", test_env=1)
    assert run.context.domain_names == ["X", "Z"]
    assert [split.environment for split in run.context.in_splits] == [0, 2]
    for split in run.context.in_splits:
        assert split.keys == list(run.in_splits[split.environment].keys)
        assert split.source is run.dataset.datasets[split.environment]


def test_epoch_is_the_one_of_the_results_rows(host_run):
    """The host divides by the smallest in-split of all environments: here the test environment's, 20 - 4 = 16."""
    run = host_run("ERM", test_env=0)
    assert run.context.steps_per_epoch == min(len(split) for split in run.in_splits) / 4 == 16 / 4


def test_class_names_in_label_order_with_spaces():
    class Folder:
        classes = ["Alarm_Clock", "Bike"]

    class Data:
        datasets = [Folder, Folder]

    assert context.TrainingContext(Data).class_names == ["Alarm Clock", "Bike"]
    assert context.TrainingContext(None).class_names is None


def test_a_new_dataset_begins_a_new_context(host_run):
    first = host_run("ERM").context
    second = host_run("ERM").context
    assert first is not second and len(second.in_splits) == 2


@pytest.mark.parametrize("arguments, steps", [((), 12), (("--steps", "7"), 7), (("--ste", "8"), 8)])
def test_total_steps_as_train_will_run_them(host_run, as_script, arguments, steps):
    """The last one is an abbreviation, which the host's argparse takes too."""
    as_script("train", "--dataset", "TinyDigits", *arguments)
    assert host_run("ERM").context.total_steps == steps


def test_output_dir_and_seed_come_from_train_only(as_script):
    as_script("train", "--output_dir", "here", "--seed", "5")
    assert (context.current().output_dir, context.current().seed) == ("here", 5)
    as_script("sweep", "launch", "--output_dir", "sweep")
    assert (context.current().output_dir, context.current().seed) == (None, 0)


def test_flags_are_all_of_train():
    """A flag that train had and we did not would let an abbreviation mean two things."""
    train = host.module("scripts.train")
    if not hasattr(train, "parse_arguments"):
        pytest.skip("the host's train script has no function that parses its arguments")
    assert vars(train.parse_arguments([])) == vars(context.train_arguments())
