"""Train one algorithm on one dataset: `python -m domainbed_domainfusion.minibed.scripts.train --dataset …`.

Writes to --output_dir: `out.txt` and `err.txt` (what was printed), `results.jsonl` (one line per evaluation),
`model.pkl`, and last `done`.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
import torchvision

from ...errors import InputError
from ...files import write_atomically
from .. import algorithms, datasets, hparams_registry
from ..lib import misc
from ..lib.fast_data_loader import FastDataLoader, InfiniteDataLoader

EVALUATION_BATCH_SIZE = 64

WeightedSplit = tuple[Any, torch.Tensor | None]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; its names and defaults are DomainBed's, and all of them go into every results line."""
    parser = argparse.ArgumentParser(description="Domain generalization")
    parser.add_argument("--data_dir", type=str)
    parser.add_argument("--dataset", type=str, default="RotatedMNIST")
    parser.add_argument("--algorithm", type=str, default="ERM")
    parser.add_argument(
        "--task", default="domain_generalization", choices=["domain_generalization", "domain_adaptation"]
    )
    parser.add_argument("--hparams", type=str, help="a JSON object of hparams that override the chosen ones")
    parser.add_argument("--hparams_seed", type=int, default=0, help="0 for the defaults, else a random choice")
    parser.add_argument("--trial_seed", type=int, default=0, help="decides the splits, and the random choice with it")
    parser.add_argument("--seed", type=int, default=0, help="decides everything else")
    parser.add_argument("--steps", type=int, help="default: the dataset's")
    parser.add_argument("--checkpoint_freq", type=int, help="steps between evaluations (default: the dataset's)")
    parser.add_argument("--test_envs", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=str, default="train_output")
    parser.add_argument("--holdout_fraction", type=float, default=0.2)
    parser.add_argument(
        "--uda_holdout_fraction",
        type=float,
        default=0,
        help="share of a test environment that domain adaptation sees without labels",
    )
    parser.add_argument("--skip_model_save", action="store_true")
    parser.add_argument("--save_model_every_checkpoint", action="store_true")
    return parser.parse_args(argv)


def print_environment() -> None:
    """The versions that decide whether a run can be repeated."""
    print("Environment:")
    for name, version in (
        ("Python", sys.version.split(" ")[0]),
        ("PyTorch", torch.__version__),
        ("Torchvision", torchvision.__version__),
        ("CUDA", torch.version.cuda),
        ("CUDNN", torch.backends.cudnn.version()),
        ("NumPy", np.__version__),
        ("PIL", PIL.__version__),
    ):
        print(f"\t{name}: {version}")


def print_settings(title: str, settings: dict[str, Any]) -> None:
    """One indented line per setting, in the order of their names."""
    print(f"{title}:")
    for name, value in sorted(settings.items()):
        print(f"\t{name}: {value}")


def choose_hparams(args: argparse.Namespace) -> dict[str, Any]:
    """The defaults or a random choice, overridden by --hparams."""
    if args.hparams_seed == 0:
        hparams = hparams_registry.default_hparams(args.algorithm, args.dataset)
    else:
        seed = misc.seed_hash(args.hparams_seed, args.trial_seed)
        hparams = hparams_registry.random_hparams(args.algorithm, args.dataset, seed)
    if args.hparams:
        hparams.update(json.loads(args.hparams))  # `register` has checked it
    return hparams


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global generators, and deterministic cuDNN."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


class Splits(NamedTuple):
    """For each environment: training part, held-out part, and (test environments only, if any) the unlabeled part."""

    inner: list[WeightedSplit]
    outer: list[WeightedSplit]
    unlabeled: list[WeightedSplit]


def split_environments(dataset: datasets.MultipleDomainDataset, args: argparse.Namespace, balanced: bool) -> Splits:
    """Split every environment by seed_hash(trial_seed, its index); with `balanced`, add class-balancing weights."""
    splits = Splits([], [], [])
    for i in range(len(dataset)):
        environment = dataset[i]
        seed = misc.seed_hash(args.trial_seed, i)
        outer, inner = misc.split_dataset(environment, int(len(environment) * args.holdout_fraction), seed)
        parts = [(splits.inner, inner), (splits.outer, outer)]
        if i in args.test_envs:
            unlabeled, inner = misc.split_dataset(inner, int(len(inner) * args.uda_holdout_fraction), seed)
            parts[0] = (splits.inner, inner)
            if len(unlabeled):
                parts.append((splits.unlabeled, unlabeled))
        for target, part in parts:
            target.append((part, misc.make_weights_for_balanced_classes(part) if balanced else None))
    if args.task == "domain_adaptation" and not splits.unlabeled:
        raise InputError(
            "Domain adaptation needs unlabeled examples: give --uda_holdout_fraction, the share of each "
            "test environment to use so."
        )
    return splits


class Loaders(NamedTuple):
    """Endless batches per training environment, unlabeled ones per test environment, every split to evaluate."""

    training: list[InfiniteDataLoader]
    unlabeled: list[InfiniteDataLoader]
    evaluation: dict[str, FastDataLoader]


def make_loaders(splits: Splits, args: argparse.Namespace, batch_size: int, num_workers: int) -> Loaders:
    """The loaders, made in DomainBed's order: each draws a seed from torch's global generator when it is made."""

    def endless(chosen: list[WeightedSplit]) -> list[InfiniteDataLoader]:
        return [
            InfiniteDataLoader(dataset=part, weights=weights, batch_size=batch_size, num_workers=num_workers)
            for part, weights in chosen
        ]

    training = endless([split for i, split in enumerate(splits.inner) if i not in args.test_envs])
    unlabeled = endless(splits.unlabeled)
    evaluation = {
        f"env{i}_{suffix}": FastDataLoader(dataset=part, batch_size=EVALUATION_BATCH_SIZE, num_workers=num_workers)
        for suffix, chosen in (("in", splits.inner), ("out", splits.outer), ("uda", splits.unlabeled))
        for i, (part, _) in enumerate(chosen)
    }
    return Loaders(training, unlabeled, evaluation)


class Run:
    """One run: the dataset, its loaders, the algorithm, and the files it writes."""

    def __init__(self, args: argparse.Namespace, hparams: dict[str, Any]):
        self.args, self.hparams = args, hparams
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        make_dataset: Any = datasets.get_dataset_class(args.dataset)  # a concrete class, with arguments
        self.dataset = make_dataset(args.data_dir, args.test_envs, hparams)
        if max(args.test_envs) >= len(self.dataset):
            raise InputError(
                f"{args.dataset} has the environments 0 to {len(self.dataset) - 1}, but --test_envs names "
                f"{max(args.test_envs)}."
            )
        splits = split_environments(self.dataset, args, hparams["class_balanced"])
        self.steps_per_epoch = min(len(part) / hparams["batch_size"] for part, _ in splits.inner)
        self.loaders = make_loaders(splits, args, hparams["batch_size"], self.dataset.N_WORKERS)
        self.num_domains = len(self.dataset) - len(args.test_envs)
        algorithm_class = algorithms.get_algorithm_class(args.algorithm)
        self.algorithm = algorithm_class(self.dataset.input_shape, self.dataset.num_classes, self.num_domains, hparams)
        self.algorithm.to(self.device)
        self._printed: list[str] = []

    def train(self) -> None:
        """All steps, evaluating at every checkpoint and after the last step; then the model and the marker."""
        steps = self.args.steps or self.dataset.N_STEPS
        checkpoint_freq = self.args.checkpoint_freq or self.dataset.CHECKPOINT_FREQ
        batches, unlabeled_batches = zip(*self.loaders.training), zip(*self.loaders.unlabeled)
        logged: dict[str, list[float]] = defaultdict(list)
        for step in range(steps):
            started = time.time()
            minibatches = [(x.to(self.device), y.to(self.device)) for x, y in next(batches)]
            unlabeled = None
            if self.args.task == "domain_adaptation":
                unlabeled = [x.to(self.device) for x, _ in next(unlabeled_batches)]
            step_values = self.algorithm.update(minibatches, unlabeled)
            logged["step_time"].append(time.time() - started)
            for key, value in step_values.items():
                logged[key].append(value)
            if step % checkpoint_freq == 0 or step == steps - 1:
                self._record(step, logged)
                logged.clear()
                if self.args.save_model_every_checkpoint:
                    self._save_model(f"model_step{step}.pkl")
        self._save_model("model.pkl")
        write_atomically(os.path.join(self.args.output_dir, "done"), "done")

    def _record(self, step: int, logged: dict[str, list[float]]) -> None:
        """Evaluate, print a row (with a header when the columns change) and append a line to results.jsonl."""
        results: dict[str, Any] = {"step": step, "epoch": step / self.steps_per_epoch}
        results.update((key, np.mean(values)) for key, values in logged.items())
        for name, loader in self.loaders.evaluation.items():
            results[f"{name}_acc"] = misc.accuracy(self.algorithm, loader, None, self.device)
        results["mem_gb"] = torch.cuda.max_memory_allocated() / 1024**3
        columns = sorted(results)
        if columns != self._printed:
            misc.print_row(columns, colwidth=12)
            self._printed = columns
        misc.print_row([results[column] for column in columns], colwidth=12)
        results.update(hparams=self.hparams, args=vars(self.args))
        with open(os.path.join(self.args.output_dir, "results.jsonl"), "a") as file:
            file.write(json.dumps(results, sort_keys=True) + "\n")

    def _save_model(self, name: str) -> None:
        if self.args.skip_model_save:
            return
        content = {
            "args": vars(self.args),
            "model_input_shape": self.dataset.input_shape,
            "model_num_classes": self.dataset.num_classes,
            "model_num_domains": self.num_domains,
            "model_hparams": self.hparams,
            "model_dict": self.algorithm.state_dict(),
        }
        write_atomically(os.path.join(self.args.output_dir, name), lambda path: torch.save(content, path))


def train(args: argparse.Namespace) -> None:
    """The whole run for parsed arguments. Raises InputError before any training if a name or a value cannot work."""
    os.makedirs(args.output_dir, exist_ok=True)
    datasets.get_dataset_class(args.dataset)
    algorithms.get_algorithm_class(args.algorithm)
    print_environment()
    print_settings("Args", vars(args))
    hparams = choose_hparams(args)
    print_settings("HParams", hparams)
    seed_everything(args.seed)
    Run(args, hparams).train()


if __name__ == "__main__":
    args = parse_arguments()  # a global of __main__, as in DomainBed, so that a plugin finds it in either host
    os.makedirs(args.output_dir, exist_ok=True)
    sys.stdout = misc.Tee(os.path.join(args.output_dir, "out.txt"))
    sys.stderr = misc.Tee(os.path.join(args.output_dir, "err.txt"))
    train(args)
