"""An image folder of one's own: the host's own image-folder dataset at another size, known to all of its scripts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.data import own_datasets
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context, host

from .. import forks


@pytest.fixture
def data(tmp_path, monkeypatch):
    """data/pictures/<3 environments>/<2 classes>/<5 images>, and a host that forgets what a test adds."""
    rng = np.random.default_rng(0)
    for environment in ("oil", "pen", "photo"):
        for name in ("hot_dog", "zebra"):
            folder = tmp_path / "data" / "pictures" / environment / name
            folder.mkdir(parents=True)
            for i in range(5):
                image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{i}.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(host.datasets, "DATASETS", list(host.datasets.DATASETS))
    yield tmp_path / "data"
    vars(host.datasets).pop("Mine", None)
    context._current = context.TrainingContext()


def add(data, *more) -> int:
    folder = str(data / "pictures")
    return cli.main(["data", "add", "Mine", folder, "--data_dir", str(data), "--image_size", "32", *more])


def test_it_is_the_hosts_dataset_at_another_size(data):
    """The same images, labels and transforms. Only the size of the transforms' result differs."""
    assert add(data, "--steps", "7", "--checkpoint_freq", "3", "--workers", "0") == 0
    own_datasets.register_described(["--data_dir", str(data)])
    made = host.datasets.get_dataset_class("Mine")(str(data), [0], {"data_augmentation": True})
    assert "Mine" in host.datasets.DATASETS and host.datasets.num_environments("Mine") == 3
    assert (made.N_STEPS, made.CHECKPOINT_FREQ, made.N_WORKERS, made.input_shape) == (7, 3, 0, (3, 32, 32))
    assert context.current().class_names == ["hot dog", "zebra"] and made.num_classes == 2

    theirs = host.datasets.MultipleEnvironmentImageFolder(str(data / "pictures"), [0], True, {})
    for i, (ours, original) in enumerate(zip(made, theirs)):
        assert ours.samples == original.samples
        steps = [type(step) for step in ours.transform.transforms]
        assert steps == [type(step) for step in original.transform.transforms]
        for step in original.transform.transforms:
            if hasattr(step, "size"):
                step.size = (32, 32)
        examples = []
        for environment in (ours, original):
            torch.manual_seed(i)
            examples.append(environment[3])
        assert torch.equal(examples[0][0], examples[1][0]) and examples[0][0].shape == (3, 32, 32)
        assert examples[0][1] == examples[1][1]


def test_a_sweep_of_it_from_launch_to_table(data, tmp_path, capsys):
    """In processes of their own, as a user runs them: nothing but the data folder tells them the dataset."""
    add(data, "--workers", "0", "--environments", "O", "N", "F")
    scripts, here = "domainbed_domainfusion.minibed.scripts", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    sweep = ["--algorithms", "ERM", "--datasets", "Mine", "--single_test_envs", "--n_hparams", "1", "--n_trials", "1"]
    sweep += ["--steps", "2", "--command_launcher", "local", "--skip_confirmation", "--data_dir", str(data)]
    sweep += ["--hparams", '{"batch_size": 2, "backbone": "mnist_cnn"}', "--output_dir", str(tmp_path / "runs")]
    forks.run(f"{scripts}.sweep", "launch", *sweep, environment=here).check_returncode()
    collect = [f"{scripts}.collect_results", "--input_dir", str(tmp_path / "runs")]
    printed = forks.run(*collect, environment=here).stdout
    assert "Dataset: Mine, model selection method: training-domain" in printed
    header = next(line for line in printed.splitlines() if line.startswith("Algorithm"))
    assert header.split() == ["Algorithm", "O", "N", "F", "Avg"]
    shutil.rmtree(data / "Mine")  # from here on as on a machine without the data
    printed_without = forks.run(*collect, environment=here).stdout
    assert printed_without == printed
    job = next((tmp_path / "runs").glob("*/dataset.json"))
    assert json.loads(job.read_text())["folder"] == str(data / "pictures")

    kept = tmp_path / "kept.jsonl"
    assert cli.main(["keep", "--input_dir", str(tmp_path / "runs"), "--output", str(kept)]) == 0
    vars(host.datasets).pop("Mine")
    host.datasets.DATASETS.remove("Mine")
    for sweep_or_file in (kept, tmp_path / "runs"):
        capsys.readouterr()
        assert cli.main(["compare", str(sweep_or_file)]) == 0
        assert "| arm | O | N | F | average |" in capsys.readouterr().out


def test_the_sweep_of_pacs_at_128_pixels_is_right_where_its_dataset_is_described(data):
    """Every name in the file, its hparams and its count of jobs. The dataset is known by the --data_dir alone."""
    file = str(Path(cli.__file__).parents[2] / "sweeps" / "pacs128" / "table.txt")
    shutil.copytree(data / "pictures" / "oil", data / "pictures" / "sketch")  # PACS has four environments
    assert cli.main(["data", "add", "Pacs128", str(data / "pictures"), "--data_dir", str(data)]) == 0

    known = forks.run("domainbed_domainfusion.cli", "sweep", "--check", file, "--data_dir", str(data))
    assert known.returncode == 0, known.stderr
    assert "5 sweeps, 96 jobs (96 different)" in known.stdout


def test_it_is_where_its_file_says_also_outside_the_data_folder(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (data / "pictures").rename(tmp_path / "elsewhere" / "pictures")
    arguments = ["data", "add", "Mine", str(tmp_path / "elsewhere" / "pictures"), "--data_dir", str(data)]
    assert cli.main(arguments) == 0
    written = json.loads((data / "Mine" / "dataset.json").read_text())
    assert written["folder"] == str(tmp_path / "elsewhere" / "pictures") and written["image_size"] == 224
    assert written["environments"] == ["oil", "pen", "photo"]


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (
            lambda root: (root / "pen" / "zebra").rename(root / "pen" / "Zebra"),
            "differ in their classes \\(Zebra, zebra\\)",
        ),
        (lambda root: [path.unlink() for path in (root / "oil" / "zebra").iterdir()], "holds no image: remove it or"),
        (lambda root: (root / "oil" / "zebra" / "9.png").symlink_to("nowhere.png"), "1 of 31 images in .* cannot be"),
        (lambda root: [path.rename(root.parent / path.name) for path in root.iterdir()], "holds no folder: the layout"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_and_nothing_is_written(data, capsys, spoil, sentence):
    spoil(data / "pictures")
    assert add(data) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not (data / "Mine").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["PACS"], "'PACS' cannot name a dataset, because the host uses it or it is no identifier: choose another."),
        (["my-data"], "'my-data' cannot name a dataset"),
        (["Mine", "--steps", "0"], "The dataset's steps is 0: give 1 or more."),
        (["Mine", "--class_names", "a"], "There are 1 class names, but .* has 2 classes \\(hot_dog, zebra\\)"),
        (["Mine", "--environments", "A", "B"], "must hold one folder per environment \\(2: A, B\\), but holds 3"),
    ],
)
def test_bad_arguments(data, arguments, sentence):
    name, *flags = arguments
    given = {}
    if flags:
        key, *values = flags
        given[key.strip("-")] = int(values[0]) if values[0].isdecimal() else values
    with pytest.raises(InputError, match=sentence):
        own_datasets.add(own_datasets.describe(name, data / "pictures", data, **given), data)


def test_a_damaged_description_names_its_file(data):
    (data / "Mine").mkdir()
    (data / "Mine" / "dataset.json").write_text('{"name": "Mine"}')
    with pytest.raises(InputError, match=r"Mine/dataset.json describes no dataset .*`domainfusion data add`"):
        own_datasets.register_described(["--data_dir", str(data)])
