"""What the upstream tests add to their copy of DomainBed, after our own import: small data, algorithms that tell on us.

Everything is looked up by DomainBed's own scripts; files are written to the job's folder.
"""

import json
import sys
from pathlib import Path

import torch
from domainbed import algorithms, datasets
from torch.utils.data import Dataset

from domainbed_domainfusion.algorithms.domainfusion import DomainFusion
from domainbed_domainfusion.hosting import context, host, hparams
from domainbed_domainfusion.pocket import digit_styles

digit_styles.PER_CLASS = 2  # 20 images in each environment instead of 1,500


def write(name, content):
    Path(context.current().output_dir, name).write_text(json.dumps(content))


class ContextProbe(algorithms.ERM):
    """Writes what TrainingContext says, and whether each minibatch really came from the in-split it names."""

    def __init__(self, *args):
        super().__init__(*args)
        self.foreign, self.seen = 0, 0

    def update(self, minibatches, unlabeled=None):
        now = context.current()
        for (x, y), split in zip(minibatches, now.in_splits, strict=True):
            inside = [split.source[key] for key in split.keys]
            for image, label in zip(x, y):
                self.seen += 1
                self.foreign += not any(torch.equal(image, a) and int(label) == int(b) for a, b in inside)
        real = vars(sys.modules["__main__"])  # train.py's own variables
        training = [i for i in range(len(real["dataset"])) if i not in real["args"].test_envs]
        write(
            "context.json",
            {
                "class_names": now.class_names,
                "domain_names": now.domain_names,
                "seen": self.seen,
                "foreign": self.foreign,
                "ours": {
                    "steps_per_epoch": now.steps_per_epoch,
                    "total_steps": now.total_steps,
                    "seed": now.seed,
                    "environments": [split.environment for split in now.in_splits],
                    "keys": [split.keys for split in now.in_splits],
                    "same_split": [split.split is real["in_splits"][i][0] for i, split in zip(training, now.in_splits)],
                    "batch_size": [split.batch_size for split in now.in_splits],
                },
                "train": {
                    "steps_per_epoch": real["steps_per_epoch"],
                    "total_steps": real["n_steps"],
                    "seed": real["args"].seed,
                    "environments": training,
                    "keys": [list(real["in_splits"][i][0].keys) for i in training],
                    "same_split": [True] * len(training),
                    "batch_size": [real["hparams"]["batch_size"]] * len(training),
                },
            },
        )
        return super().update(minibatches, unlabeled)


class Watched(Dataset):
    """An environment that, while an update is running, gives only examples of its training in-split."""

    updating = False
    reads = 0

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        if Watched.updating:
            allowed = {key for split in context.current().in_splits if split.source is self for key in split.keys}
            if index not in allowed:
                raise RuntimeError(f"tripwire: example {index} is not in a training in-split")
            Watched.reads += 1
        return self.examples[index]


class TripwireDigits(digit_styles.digit_styles_class(host.datasets.MultipleDomainDataset)):
    def __init__(self, root, test_envs, hparams):
        super().__init__(root, test_envs, hparams)
        self.datasets = [Watched(environment) for environment in self.datasets]


class Watching:
    """Mixed in before an algorithm: its updates run under the tripwire."""

    def update(self, minibatches, unlabeled=None):
        Watched.updating = True
        try:
            values = super().update(minibatches, unlabeled)
        finally:
            Watched.updating = False
        write("reads.json", Watched.reads)
        return values


class WatchedDomainFusion(Watching, DomainFusion):
    pass


class LeakingERM(algorithms.ERM):
    def update(self, minibatches, unlabeled=None):
        context.current().dataset[0][0]  # environment 0 is the test environment
        return super().update(minibatches, unlabeled)


class WatchedLeak(Watching, LeakingERM):
    pass


hparams.TABLES["WatchedDomainFusion"] = hparams.TABLES["DomainFusion"]
for cls in (ContextProbe, WatchedDomainFusion, WatchedLeak):
    setattr(algorithms, cls.__name__, cls)
datasets.TripwireDigits = TripwireDigits
