"""TrainingContext: what an algorithm with a diffusion model must know and DomainBed does not pass to it.

DomainBed gives an algorithm `(input_shape, num_classes, num_domains, hparams)` and minibatches. The class names, the
domain names, the length of an epoch and of the run, and the training in-splits exist only inside its train script.
`register` hooks the host's constructors, and each hook reports here what is being built. Nothing is computed twice, so
the context agrees with the train script exactly.

- `MultipleDomainDataset.__new__` begins a new context, because train builds its dataset first. The hook is not in
  `__init__`: Spawrious overrides that and never calls it.
- `InfiniteDataLoader.__init__` reports the training in-splits, in environment order.
- `FastDataLoader.__init__` reports the evaluation splits, the in-splits of *all* environments first. Their lengths are
  used: the host's epoch is the length of the smallest in-split, and a test environment's in-split counts too. SWAD
  alone reads the training domains' out-splits.
"""

import argparse
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from ..errors import InputError


@dataclass(frozen=True)
class InSplit:
    """The in-split of one training environment, as its training loader received it."""

    environment: int  # the environment's index in the host's dataset
    domain: str  # its name in ENVIRONMENTS, e.g. "A"; its index where the dataset names none
    split: Dataset  # what the loader draws from: the host's split of `source`
    source: Dataset  # the whole environment, transform included
    keys: list[int]  # the split's examples as indices into `source`
    batch_size: int


@dataclass
class TrainingContext:
    """What the host has built so far in one run.

    `in_splits` is empty outside the host's train script (its unit tests, for example).
    """

    dataset: Any | None = None  # the host's MultipleDomainDataset
    in_splits: list[InSplit] = field(default_factory=list)
    evaluation_lengths: list[int] = field(default_factory=list)
    evaluation_loaders: list[Any] = field(default_factory=list)  # for `validation_loaders` alone

    @property
    def environments(self) -> list[Dataset]:
        """The dataset's environments; empty before its `__init__` has made them."""
        return list(getattr(self.dataset, "datasets", None) or ())

    @property
    def class_names(self) -> list[str] | None:
        """Class names in label order, underscores as spaces; None where the dataset has none (Debug, MNIST)."""
        names = stated_class_names(self.dataset)
        if names is None and self.environments:
            names = _classes_of(self.environments[-1])
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
        lengths = self.evaluation_lengths[: len(self.environments)]
        lengths = lengths or [len(split.keys) for split in self.in_splits]
        return min(lengths) / self.in_splits[0].batch_size

    @property
    def validation_loaders(self) -> list[Any]:
        """The host's loaders of the training domains' out-splits, for SWAD; empty when there is no training run."""
        out_splits = self.evaluation_loaders[len(self.environments) : 2 * len(self.environments)]
        training = {split.environment for split in self.in_splits}
        return [loader for index, loader in enumerate(out_splits) if index in training]

    @property
    def total_steps(self) -> int:
        """Steps that train will run: `--steps`, else the dataset's N_STEPS, else the host's default."""
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
    """The context of the last dataset that was built in this process."""
    return _current


def require_run() -> None:
    """Raise InputError in a `train` run whose dataset or training in-splits the hooks did not see.

    Also if another program runs the train script inside itself: then the arguments of the run cannot be known.
    Outside the train script (unit tests, notebooks, `domainfusion predict`) there is no run, and nothing is raised.
    Call it when an algorithm is built: train has built its dataset and its loaders by then.
    """
    if running_script() == "train" and not current().in_splits:
        raise InputError(
            f"The training images of {train_arguments().dataset} cannot be seen: derive its class from the host's "
            "MultipleDomainDataset and keep its environments in the attribute `datasets`."
        )
    if running_script() is None and _inside_train():
        raise InputError(
            "The train script runs inside another program, so its seed, steps and output folder cannot be known: start "
            "it as a process of its own, or with runpy.run_module(…, run_name='__main__', alter_sys=True)."
        )


def _inside_train() -> bool:
    """Whether the train script's code called us, whatever the main module is."""
    from . import host

    frame = inspect.currentframe()
    while frame is not None:
        spec = frame.f_globals.get("__spec__")
        if spec is not None and spec.name == f"{host.NAME}.scripts.train":
            return True
        frame = frame.f_back
    return False


def stated_class_names(dataset: Any) -> list[str] | None:
    """The names that a dataset or its class states as `CLASS_NAMES` or (Spawrious) `class_list`, else None."""
    names = getattr(dataset, "CLASS_NAMES", None)
    return getattr(dataset, "class_list", None) if names is None else names


def _classes_of(environment: Any) -> list[str] | None:
    """The `classes` of an ImageFolder, also inside Subset and ConcatDataset; None where the parts differ."""
    if isinstance(environment, Subset):
        return _classes_of(environment.dataset)
    if isinstance(environment, ConcatDataset):
        first, *others = map(_classes_of, environment.datasets)
        return first if all(other == first for other in others) else None
    return getattr(environment, "classes", None)


def prompt_names(override: list[str] | None, num_classes: int) -> list[str]:
    """The names for prompts: the hparam `class_names`, else the dataset's, else the label numbers (which is printed).

    Raises InputError if there is not one name per class.
    """
    names = current().class_names if override is None else override
    if names is None:
        print("This dataset has no class names: prompts use the label numbers (the hparam class_names overrides).")
        names = [str(label) for label in range(num_classes)]
    if len(names) != num_classes:
        given = "The dataset's own list of classes" if override is None else "The hparam class_names"
        raise InputError(
            f"{given} has {len(names)} names, but the dataset has {num_classes} classes: "
            "give one name per class, in label order, as the hparam class_names."
        )
    return names


def dataset_built(dataset: Any) -> None:
    """Called when the host makes a MultipleDomainDataset, before its `__init__`: a new run begins."""
    global _current
    _current = TrainingContext(dataset)


def training_loader_built(split: Any, batch_size: int) -> None:
    """Called for every InfiniteDataLoader. A loader over a split of an environment draws from a training in-split.

    Other loaders are ignored: those of domain adaptation's unlabeled splits and of generated images.
    """
    context = current()
    source = getattr(split, "underlying_dataset", None)
    for index, environment in enumerate(context.environments):
        if source is environment:
            domain = domain_name(context.dataset, index)
            context.in_splits.append(InSplit(index, domain, split, source, list(split.keys), batch_size))


def domain_name(dataset: Any, index: int) -> str:
    """The environment's name in ENVIRONMENTS, or its index where the dataset's class names none."""
    names = getattr(dataset, "ENVIRONMENTS", None) or ()
    return str(names[index]) if index < len(names) else str(index)


def evaluation_loader_built(split: Any, loader: Any = None) -> None:
    """Called for every FastDataLoader."""
    current().evaluation_lengths.append(len(split))
    current().evaluation_loaders.append(loader)


def running_script() -> str | None:
    """`train`, `sweep`, … when this process runs one of the host's scripts, by `python -m` or as a file, else None.

    Processes that `multiprocessing` has spawned import the script of their parent, and run none.
    """
    from . import host

    if getattr(sys.modules["__main__"], "__name__", "") == "__mp_main__":
        return None
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        prefix = f"{host.NAME}.scripts."
        return spec.name[len(prefix) :] if spec.name.startswith(prefix) else None
    package = importlib.util.find_spec(host.NAME)
    if file is None or package is None or package.origin is None:
        return None
    script = Path(file).resolve()
    return script.stem if script.parent == Path(package.origin).resolve().parent / "scripts" else None


def train_arguments() -> argparse.Namespace:
    """The train script's arguments, parsed as it parses them; its defaults when another script runs."""
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
