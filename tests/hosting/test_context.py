"""TrainingContext against what the host's train script computes itself."""

import copy
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, TensorDataset
from torchvision import transforms

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context, host

from ..conftest import TinyDigits

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class OneClass(Dataset):
    """Grey images of one class behind a transform; labels are tensors. Spawrious reads its folders so."""

    def __init__(self, label: int, n: int):
        self.label, self.n, self.transform = label, n, TRANSFORM

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        image = Image.new("RGB", (32, 32), (8 * index, 50 * self.label, 90))
        return (self.transform(image) if self.transform else image), torch.tensor(self.label)


class NestedDogs(host.datasets.MultipleDomainDataset):
    """Built as Spawrious: class attributes, no call of the base class's __init__, concatenations in concatenations."""

    ENVIRONMENTS = ["Test", "Group_1", "Group_2"]
    N_STEPS, CHECKPOINT_FREQ, N_WORKERS = 4, 4, 0
    input_shape = (3, 32, 32)
    num_classes = 2
    class_list = ["sheep_dog", "corgi"]

    def __init__(self, root, test_envs, hparams):
        self.datasets = [
            ConcatDataset([ConcatDataset([OneClass(label, 8)]) for label in range(2)]) for _ in self.ENVIRONMENTS
        ]


class NoEnvironments(TinyDigits):
    ENVIRONMENTS = None


def test_a_dataset_that_never_calls_the_base_class_has_a_context(host_run, tiny_ldm):
    hparams = {"ldm": tiny_ldm, "denoising_steps": 3, "generation_interval": 1, "ld_images": 2, "gallery": 0}
    host_run("ERM")  # another dataset's run came before
    run = host_run("DomainFusion", dataset=NestedDogs, **hparams)
    assert run.context.dataset is run.dataset
    assert run.context.domain_names == ["Group_1", "Group_2"]
    assert [split.keys for split in run.context.in_splits] == [list(split.keys) for split in run.in_splits[1:]]
    assert run.context.steps_per_epoch == 13 / 4
    assert run.algorithm.pixel_range.mean.flatten().tolist() == pytest.approx(MEAN)
    assert run.algorithm.pixel_range.std.flatten().tolist() == pytest.approx(STD)
    assert run.update()[0]["generated_images"] == 26
    assert run.algorithm.generation.prompts == ["a photo of a sheep dog", "a photo of a corgi"]


def test_a_dataset_without_environment_names_runs(host_run):
    run = host_run("ERM", dataset=NoEnvironments, test_env=1)
    assert run.update()[0]["loss"] > 0
    assert run.context.domain_names == ["0", "2"]


def test_a_copy_of_the_dataset_is_no_new_run(host_run):
    run = host_run("ERM")
    copies = copy.copy(run.dataset), copy.deepcopy(run.dataset), pickle.loads(pickle.dumps(run.dataset))
    assert all(len(each) == 3 for each in copies)
    assert context.current() is run.context and context.current().dataset is run.dataset


def test_a_train_run_needs_a_context(host_run, as_script):
    context.require_run()  # no run, nothing required
    as_script("train", "--dataset", "Unseen")
    host.algorithms.ERM((3, 28, 28), 2, 3, host.hparams_registry.default_hparams("ERM", "Debug28"))
    with pytest.raises(InputError) as error:
        context.require_run()
    assert str(error.value) == (
        "The training images of Unseen cannot be seen: derive its class from the host's MultipleDomainDataset and keep "
        "its environments in the attribute `datasets`."
    )
    host_run("ERM")
    context.require_run()


def test_train_inside_another_program_is_refused(tmp_path):
    """Its arguments are not the process's: the run would silently have the default seed and number of steps."""
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\n"
        "sys.argv = ['train', '--dataset', 'Debug28', '--algorithm', 'DomainFusion']\n"
        f"sys.argv += ['--output_dir', {str(tmp_path)!r}, '--hparams', '{{\"batch_size\": 4}}']\n"
        f"runpy.run_module('{host.NAME}.scripts.train', run_name='__main__', alter_sys=False)\n"
    )
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert ended.returncode == 1
    message = "runs inside another program, so its seed, steps and output folder cannot be known"
    assert message in (tmp_path / "err.txt").read_text() + ended.stderr


def test_a_script_that_is_run_as_a_file_is_known(monkeypatch, tmp_path):
    main = types.ModuleType("__main__")
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert context.running_script() is None  # a notebook
    for file, script in (
        (Path(host.datasets.__file__).parent / "scripts" / "sweep.py", "sweep"),
        (tmp_path / "scripts" / "sweep.py", None),
    ):
        main.__file__ = str(file)
        assert context.running_script() == script


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


def test_class_names_of_nested_environments():
    """Folders in a ConcatDataset have the classes of its parts if these agree."""

    class Folder(TensorDataset):
        def __init__(self, *classes):
            super().__init__(torch.zeros(1))
            self.classes = list(classes)

    class Data:
        pass

    def names(*parts):
        Data.datasets = [torch.utils.data.Subset(ConcatDataset(parts), [0])]
        return context.TrainingContext(Data).class_names

    assert names(Folder("cat", "big_dog"), Folder("cat", "big_dog")) == ["cat", "big dog"]
    assert names(Folder("cat"), Folder("big_dog")) is None


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
