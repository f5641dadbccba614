"""Bad input ends with one sentence that names the remedy, before any training."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import checks, host


def image_folder(root, environments=("art", "photo"), classes=("cat", "dog"), n=3):
    for environment in environments:
        for name in classes:
            (root / environment / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (20, 20), (10 * i, 50, 90)).save(root / environment / name / f"{i}.jpg")
    return str(root)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="There is no dataset folder .*: give the folder above it as --data_dir"):
        checks.check_image_folder(str(tmp_path / "PACS"), ["A", "P"])


def test_a_folder_too_many(tmp_path):
    root = image_folder(tmp_path / "data", ("art", "photo", "splits"))
    with pytest.raises(InputError, match=r"one folder per environment \(2: A, P\), but holds 3 \(art, photo, splits\)"):
        checks.check_image_folder(root, ["A", "P"])


def test_environments_without_names_are_not_counted(tmp_path):
    checks.check_image_folder(image_folder(tmp_path / "data", ("art", "photo", "sketch")), None)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="There is no dataset folder .*: give the folder above it as --data_dir"):
        checks.check_image_folder(str(tmp_path), None)


def test_one_class(tmp_path):
    with pytest.raises(InputError, match="1 class folder.*two or more: the layout is environment/class/image"):
        checks.check_image_folder(image_folder(tmp_path / "data", classes=("cat",)), ["A", "P"])


def test_a_class_more_in_one_environment(tmp_path):
    root = image_folder(tmp_path / "data")
    (tmp_path / "data" / "photo" / "horse").mkdir()
    with pytest.raises(InputError, match="The class folder .*horse holds no image: remove it or fill it"):
        checks.check_image_folder(root, ["A", "P"])
    Image.new("RGB", (9, 9)).save(tmp_path / "data" / "photo" / "horse" / "1.png")
    with pytest.raises(InputError, match=r"art and photo in .* differ in their classes \(horse\)"):
        checks.check_image_folder(root, ["A", "P"])


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0 not a picture"])
def test_an_unreadable_image_among_good_ones(tmp_path, content):
    root = image_folder(tmp_path / "data")
    bad = tmp_path / "data" / "photo" / "dog" / "1.jpg"
    bad.write_bytes(content)
    with pytest.raises(InputError, match="1 of 12 images in .* cannot be read, the first is .*1.jpg: download or copy"):
        checks.check_image_folder(root, ["A", "P"])


def test_the_hosts_image_folders_are_checked(tmp_path):
    hparams = host.hparams_registry.default_hparams("ERM", "PACS")
    with pytest.raises(InputError, match="There is no dataset folder"):
        host.datasets.PACS(str(tmp_path), [0], hparams)


def test_an_environment_smaller_than_the_batch():
    """The host would wait for ever here."""
    small = TensorDataset(torch.zeros(5, 3, 8, 8), torch.zeros(5))
    sentence = r"5 images in its in-split, fewer than batch_size 6: lower it.*\"batch_size\": 5"
    with pytest.raises(InputError, match=sentence):
        host.module("lib.fast_data_loader").InfiniteDataLoader(small, None, 6, 0)
    loader = host.module("lib.fast_data_loader").InfiniteDataLoader(small, torch.ones(5), 6, 0)
    assert len(next(iter(loader))[0]) == 6  # with weights the host draws a full batch


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{'a': 1}", "--hparams is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"batchsize": 4}', "did you mean 'batch_size'"),
        ('{"strength": 7}', "The hparam strength is 7"),
        ('{"pretrained": false}', "needs a named backbone"),
    ],
)
def test_hparams_on_the_command_line(text, sentence):
    with pytest.raises(InputError, match=sentence):
        checks.check_hparams_text(text)


def test_one_hparams_for_a_whole_sweep_is_accepted():
    """A sweep hands the same --hparams to every algorithm, so a key is known if any algorithm knows it."""
    values = {"rho": 0.1, "candidates": 1, "resnet_dropout": 0.5, "backbone": "resnet18", "pretrained": False}
    assert checks.check_hparams_text(json.dumps(values)) == values


def test_only_train_and_sweep_are_checked(as_script):
    as_script("train", "--hparams", '{"nonsense": 1}')
    with pytest.raises(InputError, match="Nobody knows the hparam 'nonsense'"):
        checks.check_command_line()
    as_script("collect_results", "--hparams", '{"nonsense": 1}')
    checks.check_command_line()


@pytest.mark.parametrize(
    "tests, sentence",
    [
        ([0, 1, 2], r"--test_envs is 0 1 2, and TinyDigits has the environments 0 \(.*\), 1 .*: leave one of them out"),
        ([0, 3], r"--test_envs is 0 3, but TinyDigits has the environments 0 .*: give their numbers."),
    ],
)
def test_test_environments_that_leave_nothing_or_do_not_exist(as_script, tiny_dataset, tests, sentence):
    """The host ends with a StopIteration in the first case, and trains on all environments in the second."""
    as_script("train", "--dataset", "TinyDigits", "--test_envs", *map(str, tests))
    with pytest.raises(InputError, match=sentence):
        tiny_dataset("data", tests, {"data_augmentation": True})


@pytest.mark.parametrize("tests", [[0], [0, 2], [1, 1]])
def test_test_environments_that_leave_one(as_script, tiny_dataset, tests):
    as_script("train", "--dataset", "TinyDigits", "--test_envs", *map(str, tests))
    tiny_dataset("data", tests, {"data_augmentation": True})


def test_pairs_of_two_environments(as_script, tiny_dataset, monkeypatch):
    monkeypatch.setattr(tiny_dataset, "ENVIRONMENTS", ["x", "y"])
    as_script("sweep", "launch", "--datasets", "PACS", "TinyDigits")
    with pytest.raises(InputError, match="TinyDigits has two environments, and one must remain to train on: add --sin"):
        checks.check_command_line()
    for arguments in (["--datasets", "PACS"], ["--datasets", "TinyDigits", "--single_test_envs"]):
        as_script("sweep", "launch", *arguments)
        checks.check_command_line()
