"""TrainingContext: what a method with a diffusion model in the loop must know and DomainBed does not tell it.

DomainBed gives an algorithm `(input_shape, num_classes, num_domains, hparams)` and minibatches. The class names, the
domain names, the length of an epoch and of the run, and the training in-splits exist only inside its train script.
`register` lets the host's own constructors report here as they run; nothing is computed twice, so it is exact:

- `MultipleDomainDataset.__init__` starts a new context: a run builds its dataset first;
- `InfiniteDataLoader.__init__` reports the training in-splits, in environment order;
- `FastDataLoader.__init__` reports the evaluation splits, the in-splits of *all* environments first. Only their
  lengths are kept: the host's epoch counts the smallest in-split, whether it is trained on or not.
"""

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from ..errors import InputError


@dataclass(frozen=True)
class InSplit:
    """The in-split of one training environment, as its training loader received it."""

    environment: int  # the environment's index in the host's dataset
    domain: str  # its name in ENVIRONMENTS, e.g. "A"
    split: Dataset  # what the loader draws from: the host's split of `source`
    source: Dataset  # the whole environment, transform included
    keys: list[int]  # the split's examples as indices into `source`
    batch_size: int


@dataclass
class TrainingContext:
    """One run, as far as the host has got with it.

    `in_splits` is empty outside the host's train script (its unit tests, for example).
    """

    dataset: Any | None = None  # the host's MultipleDomainDataset
    in_splits: list[InSplit] = field(default_factory=list)
    evaluation_lengths: list[int] = field(default_factory=list)

    @property
    def class_names(self) -> list[str] | None:
        """Class names in label order, underscores as spaces; None where the dataset has none (Debug, MNIST)."""
        names = getattr(self.dataset, "CLASS_NAMES", None)
        if names is None and self.dataset is not None:
            environments = getattr(self.dataset, "datasets", [])
            names = getattr(environments[-1], "classes", None) if environments else None
        return None if names is None else [str(name).replace("_", " ") for name in names]

    @property
    def domain_names(self) -> list[str]:
        """Names of the training domains, in the order of the minibatches."""
        return [split.domain for split in self.in_splits]

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps per epoch as train computes them for its `epoch` column; None when there is no training run."""
        if not self.in_splits:
            return None
        lengths = self.evaluation_lengths[: len(self.dataset)]
        lengths = lengths or [len(split.keys) for split in self.in_splits]
        return min(lengths) / self.in_splits[0].batch_size

    @property
    def total_steps(self) -> int:
        """Steps that train will run: `--steps`, else the dataset's N_STEPS, else the host's default for it."""
        from . import host

        n_steps = getattr(self.dataset, "N_STEPS", host.datasets.MultipleDomainDataset.N_STEPS)
        return train_arguments().steps or n_steps

    @property
    def seed(self) -> int:
        """`--seed`, the host's seed for everything but splits and hparams."""
        return train_arguments().seed

    @property
    def output_dir(self) -> str | None:
        """The job's folder, or None when no train script is running."""
        return train_arguments().output_dir if running_script() == "train" else None


_current = TrainingContext()


def current() -> TrainingContext:
    """The context of the run whose dataset was built last in this process."""
    return _current


def prompt_names(override: list[str] | None, num_classes: int) -> list[str]:
    """The names that prompts use: the hparam `class_names`, else the dataset's, else the label numbers (said once).

    Raises InputError if there is not one name per class.
    """
    names = current().class_names if override is None else override
    if names is None:
        print("This dataset has no class names: prompts use the label numbers (the hparam class_names overrides).")
        names = [str(label) for label in range(num_classes)]
    if len(names) != num_classes:
        raise InputError(
            f"The hparam class_names has {len(names)} names, but the dataset has {num_classes} classes: "
            "give one name per class, in label order."
        )
    return names


def dataset_built(dataset) -> None:
    """Called when the host builds a MultipleDomainDataset: a new run begins."""
    global _current
    _current = TrainingContext(dataset)


def training_loader_built(split: Dataset, batch_size: int) -> None:
    """Called for every InfiniteDataLoader; those over a split of an environment are the training in-splits.

    Loaders over anything else (domain adaptation's unlabeled splits, our own generated images) are passed over.
    """
    context = current()
    source = getattr(split, "underlying_dataset", None)
    for index, environment in enumerate(getattr(context.dataset, "datasets", ())):
        if source is environment:
            domain = str(context.dataset.ENVIRONMENTS[index])
            context.in_splits.append(InSplit(index, domain, split, source, list(split.keys), batch_size))


def evaluation_loader_built(split: Dataset) -> None:
    """Called for every FastDataLoader; only the length is kept."""
    current().evaluation_lengths.append(len(split))


def running_script() -> str | None:
    """`train`, `sweep`, … when this process runs one of the host's scripts with `python -m`, else None."""
    from . import host

    spec = getattr(sys.modules["__main__"], "__spec__", None)
    prefix = f"{host.NAME}.scripts."
    return spec.name[len(prefix) :] if spec and spec.name.startswith(prefix) else None


def train_arguments() -> argparse.Namespace:
    """The train script's arguments as it parses them itself; its defaults when another script runs."""
    parser = argparse.ArgumentParser(add_help=False)
    for flag, kind, default in (
        ("data_dir", str, None),
        ("dataset", str, "RotatedMNIST"),
        ("algorithm", str, "ERM"),
        ("task", str, "domain_generalization"),
        ("hparams", str, None),
        ("hparams_seed", int, 0),
        ("trial_seed", int, 0),
        ("seed", int, 0),
        ("steps", int, None),
        ("checkpoint_freq", int, None),
        ("output_dir", str, "train_output"),
        ("holdout_fraction", float, 0.2),
        ("uda_holdout_fraction", float, 0.0),
    ):
        parser.add_argument(f"--{flag}", type=kind, default=default)
    parser.add_argument("--test_envs", type=int, nargs="+", default=[0])
    parser.add_argument("--skip_model_save", action="store_true")
    parser.add_argument("--save_model_every_checkpoint", action="store_true")
    arguments = sys.argv[1:] if running_script() == "train" else []
    return parser.parse_known_args(arguments)[0]
