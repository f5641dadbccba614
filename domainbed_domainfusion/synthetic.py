"""The generate-dataset of Algorithm 1: what was generated, from what, in which round; refresh and sample.

It starts as a copy of the raw in-splits, or of `budget` images of them (nothing is stored for that), and every round
overwrites all of it, starting from what the round before made. Nothing but the training in-splits is ever read.
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Callable, Optional

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from . import host, pixels
from .context import InSplit
from .gallery import Gallery
from .seeding import generator_of, seed_of

Key = tuple[int, int]  # (index among the in-splits, index into the environment)


@dataclass(frozen=True)
class Generated:
    """A batch of x_gen as Algorithm 1's line 12 leaves it."""

    images: torch.Tensor  # (B, 3, S, S) in [-1, 1]
    content: torch.Tensor  # (B,) the candidate that gave the content, line 10
    style: torch.Tensor  # (B,) the candidate that gave the style, line 11


#: Lines 7 to 12 for a minibatch: (images (B, 3, S, S) in [-1, 1], labels (B,), seeds (B × N_c)) → Generated
Generate = Callable[[torch.Tensor, torch.Tensor, list[list[int]]], Generated]


class GenerateDataset:
    """The generate-dataset over the training in-splits.

    Args:
        in_splits: what the host's training loaders draw from.
        size: pixels a side of a stored image (3 × size × size bytes each, in memory).
        pixel_range: the classifier's pixel range.
        seed: the run's seed; with (environment, index, round, candidate) it seeds each candidate.
        budget: images in it, over all domains; 0 for every image of the in-splits.
        candidates: N_c.
        workers: loader processes per domain, as the host's dataset sets them.
        gallery: where some images' versions are kept as pictures, or None.
    """

    def __init__(self, in_splits: list[InSplit], size: int, pixel_range: pixels.PixelRange, seed: int, budget: int,
                 candidates: int, workers: int = 0, gallery: Optional[Gallery] = None):
        self.in_splits = in_splits
        self.size = size
        self.pixel_range = pixel_range
        self.seed = seed
        self.budget = budget
        self.candidates = candidates
        self.workers = workers
        self.gallery = gallery
        self.keys = self._choose_keys()
        self.rounds = 0
        self.images: dict[Key, torch.Tensor] = {}  # the latest generated version, (3, size, size) uint8
        self.labels: dict[Key, int] = {}
        self._raw = [pixels.without_transform(split.source) for split in in_splits]
        self._loaders: list = []

    def version(self, key: Key) -> tuple[torch.Tensor, int]:
        """The image as it stands, generated or raw: ((3, size, size) uint8, label)."""
        if key in self.images:
            return self.images[key], self.labels[key]
        split, index = key
        image, label = self._raw[split][index]
        return pixels.stored_version(image, self.size), int(label)

    def _choose_keys(self) -> list[Key]:
        """What the generate-dataset is made of: every in-split image, or `budget` in a seeded order, evenly by domain.

        The gallery's images are the first of that order.
        """
        chosen = []
        shares = domain_shares(self.budget, [len(in_split.keys) for in_split in self.in_splits])
        for split, in_split in enumerate(self.in_splits):
            order = torch.randperm(len(in_split.keys), generator=generator_of(
                self.seed, "generate-dataset", in_split.environment)).tolist()
            chosen += [(split, in_split.keys[position]) for position in order[:shares[split]]]
        return chosen

    def refresh(self, step: int, generate: Generate, batch_size: int) -> int:
        """One round (Algorithm 1, lines 5 to 13): replace each image by what `generate` makes of its latest version.

        Returns how many were replaced. `batch_size` is speed only: every candidate has a seed of its own.
        """
        number = self.rounds + 1
        replaced = {}
        with tqdm(total=len(self.keys), desc=f"generation round {number}", file=sys.__stderr__, disable=None,
                  leave=False) as progress:  # the terminal's stderr: the host copies its own into err.txt
            for start in range(0, len(self.keys), batch_size):
                batch = self.keys[start:start + batch_size]
                versions = [self.version(key) for key in batch]
                images = pixels.from_store(torch.stack([image for image, _ in versions]))
                labels = torch.tensor([label for _, label in versions])
                made = generate(images, labels, [self._seeds(key, number) for key in batch])
                for i, (key, image) in enumerate(zip(batch, pixels.to_store(made.images))):
                    replaced[key] = (image, labels[i].item(), made.content[i].item(), made.style[i].item())
                progress.update(len(batch))
        self._keep(number, step, replaced)
        return len(replaced)

    def _seeds(self, key: Key, number: int) -> list[int]:
        split, index = key
        environment = self.in_splits[split].environment
        return [seed_of(self.seed, "candidate", environment, index, number, j) for j in range(self.candidates)]

    def _keep(self, number: int, step: int, replaced: dict) -> None:
        if self.gallery is not None:
            self.gallery.record(number, step, replaced, self)
        for key, (image, label, _, _) in replaced.items():
            self.images[key], self.labels[key] = image, label
        self.rounds = number
        self._loaders = self._build_loaders()

    def _build_loaders(self) -> list:
        """The host's own loaders over each domain's generated images, drawing with replacement as it does."""
        loaders = []
        for split, in_split in enumerate(self.in_splits):
            keys = [key for key in self.images if key[0] == split]
            dataset = _Domain([self.images[key] for key in keys], [self.labels[key] for key in keys],
                              in_split.source, self.pixel_range)
            if keys:
                with _seeded(self.seed, "generated loader", in_split.environment, self.rounds):
                    loaders.append(iter(host.module("lib.fast_data_loader").InfiniteDataLoader(
                        dataset, weights=torch.ones(len(keys)), batch_size=in_split.batch_size,
                        num_workers=self.workers)))
        return loaders

    def minibatch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A generated minibatch, `batch_size` images of every domain through the host's training transform.

        Returns x: (B, C, H, W) as the classifier takes it, y: (B,). Only after the first round.
        """
        with _seeded(self.seed, "generated minibatch", step):
            minibatches = [next(loader) for loader in self._loaders]
        return torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


def uses_generated(hparams: dict) -> bool:
    """Whether any loss sees a generated image."""
    return hparams["lambda3"] > 0 or (hparams["lambda2"] > 0 and hparams["ld_input"] == "generated")


def round_begins(step: int, steps_per_epoch: float, hparams: dict) -> bool:
    """Algorithm 1, line 4: whether epoch i (1, 2, …) begins at this step and i % Itv == 0.

    Without `updating` there is one round, at step 0.
    """
    if not hparams["updating"]:
        return step == 0
    epoch = int(step / steps_per_epoch)  # from 0; it begins at the first step with this number
    begins = step == 0 or epoch != int((step - 1) / steps_per_epoch)
    return begins and (epoch + 1) % hparams["generation_interval"] == 0


def domain_shares(budget: int, lengths: list[int]) -> list[int]:
    """How many images of each domain the generate-dataset holds, of in-splits of these lengths; budget 0: all."""
    if not budget:
        return list(lengths)
    return [min(length, len(range(i, budget, len(lengths)))) for i, length in enumerate(lengths)]


class _Domain(Dataset):
    """One domain's generated images as the host's loader sees them."""

    def __init__(self, images: list, labels: list, source: Dataset, pixel_range: pixels.PixelRange):
        self.images, self.labels, self.source, self.pixel_range = images, labels, source, pixel_range

    def __getitem__(self, index: int):
        return pixels.training_version(self.images[index], self.source, self.pixel_range), self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


@contextlib.contextmanager
def _seeded(*identity):
    """Draw from torch's CPU generator as seeded by identity, and leave it as it was: the raw minibatches of a run
    are then the same whether images are generated beside them or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*identity))
        yield
