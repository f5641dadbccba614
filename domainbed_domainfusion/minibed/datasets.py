"""The datasets: each is a list of environments, one torch dataset of (image, label) per domain."""

import os
from typing import Any

import torch
from PIL import ImageFile
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ..errors import InputError
from .lib.lookup import class_named

ImageFile.LOAD_TRUNCATED_IMAGES = True  # as in DomainBed: the readable part of a truncated image is used

DATASETS = ["Debug28", "Debug224", "VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet"]

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def get_dataset_class(dataset_name: str) -> type["MultipleDomainDataset"]:
    """The dataset of that name, registered ones included; raises InputError with the nearest name for others."""
    return class_named(globals(), dataset_name, MultipleDomainDataset, "dataset", DATASETS)


def num_environments(dataset_name: str) -> int:
    """How many environments the dataset of that name has, without loading it."""
    environments = get_dataset_class(dataset_name).ENVIRONMENTS
    if environments is None:
        raise InputError(f"The dataset {dataset_name} does not name its environments: give its class ENVIRONMENTS.")
    return len(environments)


class MultipleDomainDataset:
    """A sequence of environments; subclasses fill `datasets`, `input_shape` (C, H, W) and `num_classes`."""

    N_STEPS = 5001  # steps of a run
    CHECKPOINT_FREQ = 100  # steps between evaluations
    N_WORKERS = 8  # worker processes per data loader
    ENVIRONMENTS: list[str] | None = None  # short names, in the order of the environments
    INPUT_SHAPE: tuple[int, int, int] | None = None

    datasets: list[Dataset]
    input_shape: tuple[int, int, int]
    num_classes: int

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)


class Debug(MultipleDomainDataset):
    """Three environments of 16 standard-normal images with random labels from two classes."""

    ENVIRONMENTS = ["0", "1", "2"]
    INPUT_SHAPE: tuple[int, int, int]

    def __init__(self, root: str | None, test_envs: list[int], hparams: dict[str, Any]):
        super().__init__()
        self.input_shape = self.INPUT_SHAPE
        self.num_classes = 2
        self.datasets = [
            TensorDataset(torch.randn(16, *self.input_shape), torch.randint(0, self.num_classes, (16,)))
            for _ in self.ENVIRONMENTS
        ]


class Debug28(Debug):
    INPUT_SHAPE = (3, 28, 28)


class Debug224(Debug):
    INPUT_SHAPE = (3, 224, 224)


def _plain_transform() -> transforms.Compose:
    return transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(**IMAGENET)])


def _augmenting_transform() -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(**IMAGENET),
        ]
    )


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    """Folders root/<environment>/<class>/<image>, environments in sorted order.

    Images are (3, 224, 224), normalised with ImageNet's mean and standard deviation. `augment` augments the training
    environments; test environments are never augmented.
    """

    INPUT_SHAPE = (3, 224, 224)

    def __init__(self, root: str, test_envs: list[int], augment: bool, hparams: dict[str, Any]):
        super().__init__()
        plain, augmenting = _plain_transform(), _augmenting_transform()
        with os.scandir(root) as entries:
            environments = sorted(entry.name for entry in entries if entry.is_dir())
        folders = [
            ImageFolder(os.path.join(root, name), transform=augmenting if augment and i not in test_envs else plain)
            for i, name in enumerate(environments)
        ]
        self.datasets = [*folders]
        self.input_shape = self.INPUT_SHAPE
        self.num_classes = len(folders[-1].classes)


class _Benchmark(MultipleEnvironmentImageFolder):
    """An image-folder dataset in the folder FOLDER of the data folder."""

    FOLDER: str
    CHECKPOINT_FREQ = 300

    def __init__(self, root: str | None, test_envs: list[int], hparams: dict[str, Any]):
        if root is None:
            raise InputError(
                f"{type(self).__name__} is read from disk: give --data_dir, the folder that holds {self.FOLDER}."
            )
        self.dir = os.path.join(root, self.FOLDER)
        super().__init__(self.dir, test_envs, hparams["data_augmentation"], hparams)


class VLCS(_Benchmark):
    FOLDER = "VLCS/"
    ENVIRONMENTS = ["C", "L", "S", "V"]


class PACS(_Benchmark):
    FOLDER = "PACS/"
    ENVIRONMENTS = ["A", "C", "P", "S"]


class OfficeHome(_Benchmark):
    FOLDER = "office_home/"
    ENVIRONMENTS = ["A", "C", "P", "R"]


class TerraIncognita(_Benchmark):
    FOLDER = "terra_incognita/"
    ENVIRONMENTS = ["L100", "L38", "L43", "L46"]


class DomainNet(_Benchmark):
    FOLDER = "domain_net/"
    CHECKPOINT_FREQ = 1000
    ENVIRONMENTS = ["clip", "info", "paint", "quick", "real", "sketch"]
