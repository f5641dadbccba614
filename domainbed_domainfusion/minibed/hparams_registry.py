"""The hyperparameters of a run: a default and a random search for each name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .lib.misc import seed_hash

SMALL_IMAGES = ("Debug28", "RotatedMNIST", "ColoredMNIST")  # the datasets with small-image defaults (28 × 28)


class Hparam(NamedTuple):
    """One hyperparameter; `draw` takes a numpy RandomState and returns a plain JSON value."""

    name: str
    default: Any
    draw: Callable[[np.random.RandomState], Any]


def _fixed(name: str, value: Any) -> Hparam:
    return Hparam(name, value, lambda random: value)


def _log10(name: str, default: float, low: float, high: float) -> Hparam:
    return Hparam(name, default, lambda random: 10 ** random.uniform(low, high))


def _log2_integer(name: str, default: int, low: float, high: float) -> Hparam:
    return Hparam(name, default, lambda random: int(2 ** random.uniform(low, high)))


def _dropout(name: str) -> Hparam:
    return Hparam(name, 0.0, lambda random: float(random.choice([0.0, 0.1, 0.5])))


COMMON = (
    _fixed("data_augmentation", True),
    _fixed("resnet18", False),
    _fixed("resnet50_augmix", True),
    _fixed("dinov2", False),
    _fixed("vit", False),
    _fixed("vit_attn_tune", False),
    _fixed("freeze_bn", False),
    _fixed("lars", False),
    _fixed("linear_steps", 500),
    _dropout("resnet_dropout"),
    _dropout("vit_dropout"),
    _fixed("class_balanced", False),
    _fixed("nonlinear_classifier", False),
)


def _of_the_dataset(dataset: str) -> list[Hparam]:
    if dataset in SMALL_IMAGES:
        return [_log10("lr", 1e-3, -4.5, -2.5), _fixed("weight_decay", 0.0), _log2_integer("batch_size", 64, 3, 9)]
    largest = 5 if dataset == "DomainNet" else 5.5
    return [
        _log10("lr", 5e-5, -5, -3.5),
        _log10("weight_decay", 0.0, -6, -2),
        _log2_integer("batch_size", 32, 3, largest),
    ]


def _table(dataset: str) -> list[Hparam]:
    return [*COMMON, *_of_the_dataset(dataset)]


def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
    """The defaults for a dataset (those of ERM; an algorithm that needs more adds its own)."""
    return {each.name: each.default for each in _table(dataset)}


def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
    """A random choice. Each hparam draws from its own RandomState(seed_hash(seed, name)), independent of the others."""
    return {each.name: each.draw(np.random.RandomState(seed_hash(seed, each.name))) for each in _table(dataset)}
