"""The generate-dataset of Algorithm 1: what was generated, from what, in which round; refresh, sample, save, resume.

It starts as a copy of the raw in-splits, or of `budget` images of them (nothing is stored for that), and every round
overwrites all of it, starting from what the round before made. Nothing but the training in-splits is ever read.
With `saved` every round goes to disk as it is made, and a run that is started again takes it from there.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import pixels
from ..hosting import host
from ..hosting.context import InSplit
from ..seeding import generator_of, seed_of
from .candidate_cache import shared_seeds
from .gallery import Gallery
from .saved_rounds import PART, Inputs, Part, SavedRounds

Key = tuple[int, int]  # (index among the in-splits, index into the environment)


@dataclass(frozen=True)
class Generated:
    """A batch of x_gen as Algorithm 1's line 12 leaves it."""

    images: torch.Tensor  # (B, 3, S, S) in [-1, 1]
    content: torch.Tensor  # (B,) the candidate that gave the content, line 10
    style: torch.Tensor  # (B,) the candidate that gave the style, line 11


#: Lines 7 to 12 for a minibatch: (images (B, 3, S, S) in [-1, 1], labels (B,), seeds (B × N_c)) → Generated
Generate = Callable[[torch.Tensor, torch.Tensor, list[list[int]]], Generated]


def candidate_seeds(run_seed: int, environment: int, index: int, number: int, candidates: int) -> list[int]:
    """One seed per candidate of image `index` of an environment in round `number`."""
    return [seed_of(run_seed, "candidate", environment, index, number, j) for j in range(candidates)]


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
        saved: where whole rounds are kept and taken from, or None; may be set before the first round.
        prompts: one per label where the first round's candidates are shared by runs (see `candidate_cache`), or None.
    """

    def __init__(
        self,
        in_splits: list[InSplit],
        size: int,
        pixel_range: pixels.PixelRange,
        seed: int,
        budget: int,
        candidates: int,
        workers: int = 0,
        gallery: Gallery | None = None,
        saved: SavedRounds | None = None,
        prompts: list[str] | None = None,
    ):
        self.in_splits = in_splits
        self.size = size
        self.pixel_range = pixel_range
        self.seed = seed
        self.budget = budget
        self.candidates = candidates
        self.workers = workers
        self.gallery = gallery
        self.saved = saved
        self.prompts = prompts
        self.seconds_saved = 0.0  # that the last round's images from disk took when they were made
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
            order = torch.randperm(
                len(in_split.keys), generator=generator_of(self.seed, "generate-dataset", in_split.environment)
            ).tolist()
            chosen += [(split, in_split.keys[position]) for position in order[: shares[split]]]
        return chosen

    def refresh(self, step: int, generate: Generate, batch_size: int) -> int:
        """One round (Algorithm 1, lines 5 to 13): replace each image by what `generate` makes of its latest version.

        Returns how many were replaced. `batch_size` is speed only: every candidate has a seed of its own.
        """
        number, parts = self.rounds + 1, self._parts(batch_size)
        replaced, self.seconds_saved = {}, 0.0
        with tqdm(
            total=len(self.keys), desc=f"generation round {number}", file=sys.__stderr__, disable=None, leave=False
        ) as progress:  # the terminal's stderr: the host copies its own into err.txt
            for i, keys in enumerate(parts):
                inputs = self._inputs(number, step, i, keys)
                part = self.saved.read(inputs) if self.saved else None
                if part is None:
                    part = self._generate_part(inputs, generate, batch_size, progress)
                else:
                    self.seconds_saved += part.seconds
                    progress.update(len(keys))
                replaced.update(
                    zip(keys, zip(part.images, part.labels.tolist(), part.content.tolist(), part.style.tolist()))
                )
        if self.saved:
            self.saved.finish(number, step, len(parts), len(replaced))
        self._keep(number, step, replaced)
        return len(replaced)

    def _parts(self, batch_size: int) -> list[list[Key]]:
        """The keys in parts of whole batches, so that a part is made the same whether or not others are on disk."""
        length = max(1, PART // batch_size) * batch_size
        return [self.keys[start : start + length] for start in range(0, len(self.keys), length)]

    def _inputs(self, number: int, step: int, part: int, keys: list[Key]) -> Inputs:
        versions = [self.version(key) for key in keys]
        seeds = None
        if self.prompts is not None and number == 1:  # later versions depend on θ, which no two runs share
            seeds = [shared_seeds(image, self.prompts[label], self.candidates) for image, label in versions]
        return Inputs(
            number,
            step,
            part,
            [self.in_splits[split].environment for split, _ in keys],
            [index for _, index in keys],
            torch.stack([image for image, _ in versions]),
            torch.tensor([label for _, label in versions]),
            seeds,
        )

    def _generate_part(self, inputs: Inputs, generate: Generate, batch_size: int, progress: tqdm) -> Part:
        started = time.perf_counter()
        seeds = inputs.seeds or [
            candidate_seeds(self.seed, environment, index, inputs.number, self.candidates)
            for environment, index in zip(inputs.environments, inputs.indices)
        ]
        images, content, style = [], [], []
        for start in range(0, len(seeds), batch_size):
            batch = slice(start, start + batch_size)
            made = generate(pixels.from_store(inputs.images[batch]), inputs.labels[batch], seeds[batch])
            images.append(pixels.to_store(made.images))
            content.append(made.content.cpu())
            style.append(made.style.cpu())
            progress.update(len(images[-1]))
        part = Part(
            torch.cat(images).contiguous(),
            inputs.labels,
            torch.cat(content),
            torch.cat(style),
            time.perf_counter() - started,
        )
        if self.saved:
            self.saved.write(inputs, part)
        return part

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
            dataset = _Domain(
                [self.images[key] for key in keys],
                [self.labels[key] for key in keys],
                in_split.source,
                self.pixel_range,
            )
            if keys:
                with _seeded(self.seed, "generated loader", in_split.environment, self.rounds):
                    loaders.append(
                        iter(
                            host.module("lib.fast_data_loader").InfiniteDataLoader(
                                dataset,
                                weights=torch.ones(len(keys)),
                                batch_size=in_split.batch_size,
                                num_workers=self.workers,
                            )
                        )
                    )
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
