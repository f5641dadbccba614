"""A training run without the host's script: a dataset in memory, the host's splits and loaders, an algorithm."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import domainbed_domainfusion.register  # noqa: F401 - adds our algorithms to the host
from domainbed_domainfusion.hosting import host

from .models import Model

DOMAINS = ("A", "B", "C", "T")  # three to train on; T is the test environment unless another is named


class Images(host.datasets.MultipleDomainDataset):
    """Four environments of smooth random images in [0, 1], in ten classes. Speed does not depend on the images."""

    ENVIRONMENTS = list(DOMAINS)
    N_WORKERS = 0

    def __init__(self, model: Model, per_domain: int) -> None:
        super().__init__()
        self.CLASS_NAMES = model.class_names
        self.input_shape, self.num_classes = (3, model.image_size, model.image_size), len(model.class_names)
        self.datasets = []
        for number in range(len(DOMAINS)):
            images, labels = model.images(per_domain, seed=number)
            self.datasets.append(TensorDataset(images / 2 + 0.5, labels))


class HostData:
    """A dataset with the host's splits and training loaders, built in the order of its train script.

    An in-split has `epoch` · `batch_size` images, so an epoch is `epoch` steps.
    """

    def __init__(
        self, dataset: Any, batch_size: int, device: str, epoch: int = 1, trial: int = 0, test_env: int = 3
    ) -> None:
        misc, loaders = host.lib.misc, host.module("lib.fast_data_loader")
        self.dataset, self.device = dataset, device
        splits = [
            misc.split_dataset(environment, len(environment) - epoch * batch_size, misc.seed_hash(trial, i))
            for i, environment in enumerate(dataset)
        ]
        self.environments = [i for i in range(len(splits)) if i != test_env]
        self.in_splits = [splits[i][1] for i in self.environments]
        self._minibatches: Iterator = zip(
            *(loaders.InfiniteDataLoader(split, None, batch_size, 0) for split in self.in_splits)
        )

    def training_images(self, count: int) -> tuple[Tensor, Tensor]:
        """(count, 3, S, S) in [-1, 1] and labels (count,), of each domain in turn. The dataset is in [0, 1]."""
        splits = self.in_splits
        chosen = [splits[i % len(splits)][i // len(splits)] for i in range(count)]
        return torch.stack([x for x, _ in chosen]) * 2 - 1, torch.tensor([int(y) for _, y in chosen])

    def built(self, algorithm: str, hparams: dict[str, Any]) -> Any:
        """A new algorithm of that name for this dataset, on the device."""
        return host.algorithms.get_algorithm_class(algorithm)(
            self.dataset.input_shape, self.dataset.num_classes, len(self.in_splits), hparams
        ).to(self.device)

    def minibatches(self) -> list:
        """[(x (B, 3, S, S) in [0, 1], y (B,))] per training domain, on the device."""
        return [(x.to(self.device), y.to(self.device)) for x, y in next(self._minibatches)]


class HostRun(HostData):
    """The objects of the host's train script: an algorithm on random images, of which an epoch is one step."""

    def __init__(
        self, algorithm: str, model: Model, hparams: dict[str, Any], device: str, trial: int = 0, test_env: int = 3
    ) -> None:
        torch.manual_seed(0)
        batch = hparams["batch_size"]
        super().__init__(Images(model, 2 * batch), batch, device, trial=trial, test_env=test_env)
        self.algorithm = self.built(algorithm, hparams)

    def steps(self, count: int) -> list[dict]:
        """Call `update` `count` times; returns the results."""
        return [self.algorithm.update(self.minibatches()) for _ in range(count)]
