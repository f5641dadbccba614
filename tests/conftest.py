"""What several test files need: a tiny diffusion model, a tiny dataset, a run of the host without its script."""

import sys

import pytest
import torch
from torch.utils.data import TensorDataset

import domainbed_domainfusion.register  # noqa: F401 - tests see the host as its scripts do
from domainbed_domainfusion.hosting import context, host

from .tiny_ldm import make_tiny_stable_diffusion


@pytest.fixture(autouse=True, scope="module")
def no_run_of_another_file():
    """Each file of tests begins outside a training run, whatever ran before it in the process."""
    context._current = context.TrainingContext()


@pytest.fixture(scope="session")
def tiny_ldm(tmp_path_factory) -> str:
    """A Stable Diffusion 1.x folder with random weights, 4 pixels per latent."""
    return str(make_tiny_stable_diffusion(tmp_path_factory.mktemp("ldm") / "tiny"))


class TinyDigits(host.datasets.MultipleDomainDataset):
    """Three environments of random 32×32 images in [0, 1], 4 classes; every pixel of an image is its identity."""

    ENVIRONMENTS = ["X", "Y", "Z"]
    CLASS_NAMES = ["zero", "one", "two", "three"]
    INPUT_SHAPE = (3, 32, 32)
    N_STEPS, CHECKPOINT_FREQ, N_WORKERS = 12, 6, 0

    def __init__(self, root=None, test_envs=(), hparams=None, n=20):
        super().__init__()
        self.input_shape, self.num_classes = self.INPUT_SHAPE, len(self.CLASS_NAMES)
        generator = torch.Generator().manual_seed(0)
        self.datasets = [
            TensorDataset(torch.rand(n + i, 3, 32, 32, generator=generator), torch.arange(n + i) % self.num_classes)
            for i in range(3)
        ]


class Tripwire(TensorDataset):
    """An environment that remembers which of its examples were read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.read = set()

    def __getitem__(self, index):
        self.read.add(index)
        return super().__getitem__(index)


class WiredDigits(TinyDigits):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.datasets = [Tripwire(*environment.tensors) for environment in self.datasets]


@pytest.fixture
def tiny_dataset(monkeypatch):
    """Lets the host's scripts find `TinyDigits` by name."""
    monkeypatch.setattr(host.datasets, "TinyDigits", TinyDigits, raising=False)
    return TinyDigits


#: The values of all other datasets, where the defaults for digits differ.
NOT_FOR_DIGITS = {"candidates": 3, "strength": 0.8, "lambda2": 0.5, "ld_preset": "mean"}


class HostRun:
    """Builds what the host's train script builds, in its order: dataset, splits, loaders, algorithm."""

    def __init__(self, algorithm: str, test_env: int = 0, dataset=TinyDigits, **hparams):
        misc, loaders = host.lib.misc, host.module("lib.fast_data_loader")
        torch.manual_seed(0)
        self.hparams = {
            **host.hparams_registry.default_hparams(algorithm, "DigitStyles"),
            **(NOT_FOR_DIGITS if algorithm == "DomainFusion" else {}),
            "batch_size": 4,
            "backbone": "mnist_cnn",
            **hparams,
        }
        self.dataset = dataset(None, [test_env], self.hparams)
        splits = [
            misc.split_dataset(env, int(len(env) * 0.2), misc.seed_hash(0, i)) for i, env in enumerate(self.dataset)
        ]
        self.in_splits, self.out_splits = [s[1] for s in splits], [s[0] for s in splits]
        training = [
            loaders.InfiniteDataLoader(split, None, self.hparams["batch_size"], 0)
            for i, split in enumerate(self.in_splits)
            if i != test_env
        ]
        for split in self.in_splits + self.out_splits:
            loaders.FastDataLoader(split, 64, 0)
        self.minibatches = zip(*training)
        self.algorithm = host.algorithms.get_algorithm_class(algorithm)(
            self.dataset.input_shape, self.dataset.num_classes, len(training), self.hparams
        )
        self.context = context.current()

    def update(self, steps: int = 1) -> list[dict]:
        return [self.algorithm.update(next(self.minibatches)) for _ in range(steps)]


@pytest.fixture
def host_run():
    """The class HostRun; the host's context is cleared afterwards."""
    yield HostRun
    context._current = context.TrainingContext()


@pytest.fixture
def as_script(monkeypatch):
    """Make this process look like `python -m <host>.scripts.<name> <arguments>`."""

    def pretend(name: str, *arguments: str):
        class Spec:
            pass

        Spec.name = f"{host.NAME}.scripts.{name}"
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", Spec)
        monkeypatch.setattr(sys, "argv", [name, *arguments])

    return pretend
