"""The command lines of the embedded host: what they print, write, refuse."""

import json
import shlex
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.minibed import algorithms, command_launchers, datasets, networks
from domainbed_domainfusion.minibed.lib import misc, reporting
from domainbed_domainfusion.minibed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed_domainfusion.minibed.scripts import collect_results, sweep, train


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Run a sweep command over Debug28 with a launcher that keeps its commands; (its commands, what it printed)."""

    def run(command="launch", *arguments):
        commands = []
        monkeypatch.setitem(command_launchers.REGISTRY, "keep", commands.extend)
        sweep.main(
            [
                command,
                "--data_dir",
                "some data",
                "--output_dir",
                str(tmp_path / "sweep"),
                "--algorithms",
                "ERM",
                "--datasets",
                "Debug28",
                "--n_hparams",
                "1",
                "--n_trials",
                "1",
                "--command_launcher",
                "keep",
                *(arguments or ["--skip_confirmation"]),
            ]
        )
        return commands, capsys.readouterr().out

    return run


def test_a_sweep_launches_each_job_once(launch, tmp_path):
    commands, printed = launch()
    assert len(commands) == 6 and "6 jobs: 0 done, 0 incomplete, 6 not launched.\nAbout to launch 6 jobs." in printed
    assert printed.endswith("Launched 6 jobs!\n") and len(list((tmp_path / "sweep").iterdir())) == 6
    commands, printed = launch()
    assert commands == [] and "6 jobs: 0 done, 6 incomplete, 0 not launched." in printed


def test_delete_incomplete_keeps_what_is_done(launch, tmp_path):
    launch()
    done = sorted((tmp_path / "sweep").iterdir())[0]
    (done / "done").write_text("done")
    _, printed = launch("delete_incomplete")
    assert printed.endswith("About to delete 5 jobs.\nDeleting...\nDeleted 5 jobs!\n")
    assert list((tmp_path / "sweep").iterdir()) == [done]
    commands, _ = launch()
    assert len(commands) == 5


def test_a_sweep_asks_first(launch, monkeypatch, tmp_path):
    monkeypatch.setattr("builtins.input", lambda question: {"Are you sure? (y/n) ": " No"}[question])
    with pytest.raises(SystemExit) as exit_:
        launch("launch", "--single_test_envs")
    assert exit_.value.code == 0 and not (tmp_path / "sweep").exists()


def test_a_job_runs_this_python_and_survives_the_shell(launch):
    words = shlex.split(launch()[0][0])
    assert words[:3] == [sys.executable, "-m", "domainbed_domainfusion.minibed.scripts.train"]
    args = train.parse_arguments(words[3:])
    assert args.data_dir == "some data" and args.dataset == "Debug28"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--datasets", "PACKS"], "There is no dataset called 'PACKS': did you mean 'PACS'?"),
        (["--algorithms", "erm", "ERN"], "There is no algorithm called 'erm': did you mean 'ERM'?"),
        (["--command_launcher", "locl"], "There is no command launcher called 'locl': did you mean 'local'?"),
    ],
)
def test_a_sweep_refuses_unknown_names(arguments, sentence):
    given = ["launch", "--data_dir", "d", "--output_dir", "o", "--command_launcher", "dummy", *arguments]
    with pytest.raises(InputError) as error:
        sweep.main(given)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--dataset", "Debug2"], "There is no dataset called 'Debug2': did you mean 'Debug28'?"),
        (["--algorithm", "ER"], "There is no algorithm called 'ER': did you mean 'ERM'?"),
        (["--dataset", "PACS"], "PACS is read from disk: give --data_dir, the folder that holds PACS/."),
        (["--test_envs", "0", "3"], "Debug28 has the environments 0 to 2, but --test_envs names 3."),
        (["--task", "domain_adaptation"], "Domain adaptation needs unlabeled examples: give --uda_holdout_fraction"),
    ],
)
def test_train_refuses_what_cannot_work(arguments, sentence, tmp_path):
    with pytest.raises(InputError) as error:
        train.train(train.parse_arguments(["--dataset", "Debug28", "--output_dir", str(tmp_path), *arguments]))
    assert str(error.value).startswith(sentence)
    assert not (tmp_path / "results.jsonl").exists()


def test_collect_results_refuses_an_empty_folder_and_a_broken_line(tmp_path):
    with pytest.raises(InputError, match="There is no folder .*none: give the --output_dir of a sweep"):
        collect_results.main(["--input_dir", str(tmp_path / "none")])
    with pytest.raises(InputError, match="No results.jsonl under"):
        collect_results.main(["--input_dir", str(tmp_path)])
    job = tmp_path / "job"
    job.mkdir()
    (job / "results.jsonl").write_text(json.dumps({"step": 0}) + '\n{"step": 3')
    with pytest.raises(InputError, match="Line 2 of .*results.jsonl is not whole"):
        reporting.load_records(str(tmp_path))


def test_accuracy_weighs_examples_and_restores_train_mode():
    class Ones(torch.nn.Module):
        def predict(self, x):
            assert not self.training
            return torch.nn.functional.one_hot(torch.ones(len(x), dtype=torch.long), 3)

    network, data = Ones(), TensorDataset(torch.zeros(5, 1), torch.tensor([1, 1, 0, 1, 2]))
    batches = [(data.tensors[0][i : i + 2], data.tensors[1][i : i + 2]) for i in (0, 2, 4)]
    assert misc.accuracy(network, batches, None, "cpu") == 3 / 5 and network.training
    assert misc.accuracy(network, batches, torch.tensor([1.0, 0, 1, 1, 2]), "cpu") == 2 / 5


def test_loaders_cover_their_data():
    data = TensorDataset(torch.arange(10.0))
    for _ in range(2):
        batches = [batch for (batch,) in FastDataLoader(data, 4, 0)]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert torch.cat(batches).sort().values.tolist() == list(range(10))
    weights = torch.tensor([0.0] * 8 + [0.5, 0.5])
    stream = iter(InfiniteDataLoader(data, weights, 4, 0))
    drawn = torch.cat([next(stream)[0] for _ in range(20)])
    assert set(drawn.tolist()) == {8.0, 9.0}


def test_frozen_batch_normalisation_stays_in_eval_mode(monkeypatch):
    import torchvision

    monkeypatch.setattr(networks, "_pretrained_resnet", lambda hparams: (torchvision.models.resnet18(), 512))
    network = networks.ResNet((3, 224, 224), {"freeze_bn": True, "resnet_dropout": 0.5})
    modes = {module.training for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert modes == {False} and network.dropout.training
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_a_machine_without_network_gets_the_remedy(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known\nretried five times")

    monkeypatch.setattr("torchvision.models.resnet.ResNet50_Weights.get_state_dict", no_network)
    hparams = {"vit": False, "resnet18": False, "resnet50_augmix": False, "freeze_bn": False, "resnet_dropout": 0.0}
    with pytest.raises(
        InputError,
        match="weights of resnet50 cannot be had .Name or service not known.: run once with "
        'a network, or start from random weights with --hparams \'{"backbone": ',
    ):
        networks.Featurizer((3, 224, 224), hparams)
    with pytest.raises(InputError, match="no featurizer for images of .30, 30. pixels: use 28, 32 or 224"):
        networks.Featurizer((3, 30, 30), hparams)


def test_image_folders_are_augmented_only_for_training(tmp_path):
    from PIL import Image

    for env in ("b_paint", "a_photo", "c_sketch", "d"):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "PACS" / env / name
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 30), (100, 150 * label, 50)).save(folder / "1.png")
    dataset = datasets.PACS(str(tmp_path), [1], {"data_augmentation": True})
    assert dataset.input_shape == (3, 224, 224) and dataset.num_classes == 2 and len(dataset) == 4
    assert [len(env.transform.transforms) > 3 for env in dataset] == [True, False, True, True]
    assert [env.root.rsplit("/", 1)[1] for env in dataset] == ["a_photo", "b_paint", "c_sketch", "d"]
    x, y = dataset[1][1]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor([100, 150, 50]) / 255 - mean) / deviation
    assert y == 1 and torch.allclose(x.mean((1, 2)), expected, atol=1e-4)


def test_erm_is_the_only_algorithm_of_its_own():
    found = {name: algorithms.get_algorithm_class(name).__module__ for name in algorithms.ALGORITHMS}
    assert [name for name, module in found.items() if module == algorithms.__name__] == ["ERM"]
