"""The generate-dataset of Algorithm 1: the latest generated version of every image, and the rounds that renew it.

It begins as a copy of the raw in-splits, or of `budget` images of them. These raw images are read from the host's
dataset and not stored. Each round generates from the images of the round before and overwrites them in place. Only the
training in-splits are ever read. With `saved` each round is also written to disk while it runs, and a restarted run
reads it from there.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import pixels
from ..errors import InputError
from ..hosting import host
from ..hosting.context import InSplit
from ..seeding import generator_of, seed_of
from .candidate_cache import shared_seeds
from .gallery import Gallery
from .generation import Generated
from .image_store import ImageStore, check_space, is_on_disk, store_bytes
from .saved_rounds import IMAGES_PER_PART, Inputs, Part, SavedRounds

Key = tuple[int, int]  # (index among the in-splits, index into the environment)

#: Images (B, 3, S, S) in [-1, 1], labels (B,), seeds (B × N_c).
Batch = tuple[torch.Tensor, torch.Tensor, list[list[int]]]
#: A `Generation`: (images, labels, seeds, whether runs share these) → Generated
Generate = Callable[[torch.Tensor, torch.Tensor, list[list[int]], bool], Generated]
#: `Generation.ahead`: (the batches to come, whether runs share their seeds)
Ahead = Callable[[Iterator[Batch], bool], None]

PREFETCHED = 2  # minibatches that each loader worker fetches ahead, torch's default


def candidate_seeds(run_seed: int, environment: int, index: int, number: int, candidates: int) -> list[int]:
    """One seed per candidate of image `index` of an environment in round `number`."""
    return [seed_of(run_seed, "candidate", environment, index, number, j) for j in range(candidates)]


class GenerateDataset:
    """The generate-dataset over the training in-splits.

    Args:
        in_splits: the in-splits of the training environments; the host's training loaders draw from them.
        size: pixels a side of a stored image; 3 × size × size bytes each, see `image_store`.
        pixel_range: the classifier's pixel range.
        seed: the run's seed. With (environment, index, round, candidate) it seeds each candidate.
        budget: images in it, over all domains; 0 for every image of the in-splits.
        candidates: N_c.
        workers: loader worker processes per domain, as the host's dataset sets them.
        balanced: whether every class is drawn equally often, the host's hparam `class_balanced`.
        folder: for the file of a store that is too large for memory; None for the system's temporary folder.
        gallery: keeps the versions of some images as pictures, or None.
        saved: writes whole rounds to disk and reads them again, or None; may be set before the first round.
        prompts: one per label if runs share the first round's candidates (see `candidate_cache`), else None.
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
        balanced: bool = False,
        folder: str | Path | None = None,
        gallery: Gallery | None = None,
        saved: SavedRounds | None = None,
        prompts: list[str] | None = None,
    ):
        self.in_splits, self.size, self.pixel_range = in_splits, size, pixel_range
        self.seed, self.budget, self.candidates = seed, budget, candidates
        self.workers, self.balanced, self.folder = workers, balanced, folder
        self.gallery, self.saved, self.prompts = gallery, saved, prompts
        self.seconds_saved = 0.0  # generation time of those images of the last round that were read from disk
        self.rounds = 0
        self.round_steps: list[int] = []  # the step of each round
        self.keys: list[Key] = []  # row → key
        self.rows: list[range] = []  # in-split → its rows
        self._choose_keys()
        self.labels = torch.zeros(len(self.keys), dtype=torch.long)
        self._store: ImageStore | None = None  # made with the first round
        self._raw = [pixels.without_transform(split.source) for split in in_splits]
        self._loaders: list[Iterator] = []

    def _choose_keys(self) -> None:
        """Choose every in-split image, or `budget` of them split evenly over the domains, in a seeded order.

        The rows of one domain are contiguous. The gallery shows the first rows of each domain.
        """
        shares = domain_shares(self.budget, [len(in_split.keys) for in_split in self.in_splits])
        for split, in_split in enumerate(self.in_splits):
            identity = (self.seed, "generate-dataset", in_split.environment)
            order = torch.randperm(len(in_split.keys), generator=generator_of(*identity)).tolist()
            first = len(self.keys)
            self.keys += [(split, in_split.keys[position]) for position in order[: shares[split]]]
            self.rows.append(range(first, len(self.keys)))

    def check_space(self, rounds: int) -> None:
        """Raise InputError if the disk is too small for the files of `rounds` rounds. Called before any generation."""
        images, size = len(self.keys), self.size
        needed = store_bytes(images, size) if is_on_disk(images, size) else 0
        if self.saved:
            self.saved.check_space(rounds, images, size, beside=needed)
        elif needed:
            check_space(self.folder, needed)

    def version(self, row: int) -> tuple[torch.Tensor, int]:
        """The current image of a row, generated or still raw: ((3, size, size) uint8, label)."""
        if self.rounds and self._store is not None:
            return self._store.images[row].clone(), int(self.labels[row])
        split, index = self.keys[row]
        image, label = self._raw[split][index]
        return pixels.stored_version(image, self.size), int(label)

    def versions(self, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        """`version` of several rows at once: ((n, 3, size, size) uint8, (n,) labels)."""
        if self.rounds and self._store is not None:
            here = slice(rows.start, rows.stop)
            return self._store.images[here].clone(), self.labels[here].clone()
        images, labels = zip(*map(self.version, rows))
        return torch.stack(images), torch.tensor(labels)

    def refresh(self, step: int, generate: Generate, batch_size: int, ahead: Ahead | None = None) -> int:
        """One round (Algorithm 1, lines 5 to 13): replace the latest version of each image by a generated one.

        Returns the number of images. `batch_size` changes speed only, because every candidate has its own seed. `ahead`
        is told the batches of a part before `generate` is called with the first of them.
        """
        number, parts = self.rounds + 1, self._parts(batch_size)
        store = self._store or ImageStore(len(self.keys), self.size, self.folder)
        if self.gallery is not None and number == 1:
            self.gallery.record_originals(self)
        content, style = torch.zeros(2, len(self.keys), dtype=torch.long)
        self.seconds_saved = 0.0
        with _progress_bar(number, len(self.keys)) as progress:
            for i, rows in enumerate(parts):
                inputs = self._inputs(number, step, i, rows)
                part = self.saved.read(inputs) if self.saved else None
                if part is None:
                    part = self._generate_part(inputs, generate, batch_size, progress, ahead)
                else:
                    self.seconds_saved += part.seconds
                    progress.update(len(rows))
                here = slice(rows.start, rows.stop)
                store.images[here], self.labels[here] = part.images, part.labels
                content[here], style[here] = part.content, part.style
        self._store, self.rounds = store, number
        self.round_steps.append(step)
        if self.saved:
            self.saved.finish(number, step, len(parts), len(self.keys))
        if self.gallery is not None:
            self.gallery.record(number, step, self, content, style)
        self._update_loaders(store)
        return len(self.keys)

    def _parts(self, batch_size: int) -> list[range]:
        """The rows in parts of whole batches. So a part is generated in the same batches when others come from disk."""
        length = max(1, IMAGES_PER_PART // batch_size) * batch_size
        return [range(start, min(start + length, len(self.keys))) for start in range(0, len(self.keys), length)]

    def _inputs(self, number: int, step: int, part: int, rows: range) -> Inputs:
        (images, labels), keys = self.versions(rows), [self.keys[row] for row in rows]
        seeds = None
        if self.prompts is not None and number == 1:  # later versions depend on θ, which differs between runs
            prompts = [self.prompts[label] for label in labels.tolist()]
            seeds = [shared_seeds(image, prompt, self.candidates) for image, prompt in zip(images, prompts)]
        return Inputs(
            number,
            step,
            part,
            [self.in_splits[split].environment for split, _ in keys],
            [index for _, index in keys],
            images,
            labels,
            seeds,
        )

    def _generate_part(
        self, inputs: Inputs, generate: Generate, batch_size: int, progress: tqdm, ahead: Ahead | None
    ) -> Part:
        started = time.perf_counter()
        seeds = inputs.seeds or [
            candidate_seeds(self.seed, environment, index, inputs.number, self.candidates)
            for environment, index in zip(inputs.environments, inputs.indices)
        ]

        def batches() -> Iterator[Batch]:
            for start in range(0, len(seeds), batch_size):
                here = slice(start, start + batch_size)
                yield pixels.from_store(inputs.images[here]), inputs.labels[here], seeds[here]

        if ahead is not None:
            ahead(batches(), inputs.seeds is not None)
        images, content, style = [], [], []
        for batch in batches():
            made = generate(*batch, inputs.seeds is not None)
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

    def _update_loaders(self, store: ImageStore) -> None:
        """Build the host's InfiniteDataLoader for each domain after the first round; update it after later rounds.

        They draw with replacement, as the host's training loaders do. The loader workers share the store's memory, so
        they see later rounds. After such a round only the minibatches that were fetched before it are dropped.
        """
        built = bool(self._loaders)
        for split, in_split in enumerate(self.in_splits):
            with _seeded_by(self.seed, "generated loader", in_split.environment, self.rounds):
                if not built:
                    self._loaders.append(self._loader(store, split))
                    continue
                for _ in range(PREFETCHED * self.workers if self.rows[split] else 0):
                    next(self._loaders[split])

    def _loader(self, store: ImageStore, split: int) -> Iterator:
        """Endless minibatches (x, y) of one domain. An empty iterator if the domain has no image."""
        in_split, rows = self.in_splits[split], self.rows[split]
        if not rows:
            return iter(())
        here = slice(rows.start, rows.stop)
        labels = self.labels[here]
        weights = torch.ones(len(rows))
        if self.balanced:
            weights = host.lib.misc.make_weights_for_balanced_classes([(None, label) for label in labels.tolist()])
        domain = _DomainImages(store, rows, labels, in_split.source, self.pixel_range)
        loader = host.module("lib.fast_data_loader").InfiniteDataLoader
        return iter(loader(domain, weights=weights, batch_size=in_split.batch_size, num_workers=self.workers))

    def minibatch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A generated minibatch: `batch_size` images of every domain, after the host's training transform.

        Returns x: (B, C, H, W) as the classifier takes it, y: (B,), and the images' rows: (B,). Call it only after the
        first round.
        """
        with _seeded_by(self.seed, "generated minibatch", step):
            minibatches = [next(loader) for loader, rows in zip(self._loaders, self.rows) if rows]
        x, y, rows = (torch.cat(parts) for parts in zip(*minibatches))
        return x, y, rows

    def resume_state(self) -> dict[str, Any]:
        """Plain data from which `load_resume_state` continues. The images are not in it: `saved` has written them.

        Raises InputError if the images of the last round are not on the disk.
        """
        if self.rounds and (self.saved is None or not self.saved.all_saved):
            raise InputError("The generated images could not be saved, so no checkpoint can refer to them.")
        return {
            "round_steps": list(self.round_steps),
            "seconds_saved": self.seconds_saved,
            "gallery": self.gallery.resume_state() if self.gallery is not None else None,
        }

    def load_resume_state(self, state: dict[str, Any], step: int) -> None:
        """Become what the dataset was at the start of `step`: the last round's images, and loaders as far as they were.

        The loaders are built as in the first round. All minibatches since then are drawn again, because the random
        numbers of the loader workers cannot be saved. Raises InputError if the round's files are not whole.
        """
        self.seconds_saved = state["seconds_saved"]
        if self.gallery is not None and state["gallery"] is not None:
            self.gallery.load_resume_state(state["gallery"])
        if not state["round_steps"]:
            return
        assert self.saved is not None
        store, row = ImageStore(len(self.keys), self.size, self.folder), 0
        for images, labels in self.saved.images_and_labels(len(state["round_steps"])):
            here = slice(row, row + len(images))
            store.images[here], self.labels[here] = images, labels
            row += len(images)
        self._store = store
        for past in range(state["round_steps"][0], step):
            if past in state["round_steps"]:
                self.rounds += 1
                self._update_loaders(store)
            self.minibatch(past)
        self.round_steps = list(state["round_steps"])


def uses_generated(hparams: dict) -> bool:
    """Whether any loss sees a generated image."""
    sees_generated = hparams["ld_when"] == "generation" or hparams["ld_input"] == "generated"
    return hparams["lambda3"] > 0 or (hparams["lambda2"] > 0 and sees_generated)


def round_begins(step: int, steps_per_epoch: float, hparams: dict) -> bool:
    """Algorithm 1, line 4: whether an epoch i (1, 2, …) with i % Itv == 0 begins at this step.

    If an epoch is shorter than a step, several epochs begin at one step. Then one epoch with i % Itv == 0 is enough.
    Without `updating` there is one round, at step 0.
    """
    if not hparams["updating"]:
        return step == 0
    interval = hparams["generation_interval"]
    begun = int(step / steps_per_epoch) + 1  # epochs that have begun by this step, its own included
    before = int((step - 1) / steps_per_epoch) + 1 if step else 0
    return begun // interval > before // interval


def domain_shares(budget: int, lengths: list[int]) -> list[int]:
    """How many images of each domain the generate-dataset holds. lengths: of the in-splits. A budget of 0 takes all."""
    if not budget:
        return list(lengths)
    return [min(length, len(range(i, budget, len(lengths)))) for i, length in enumerate(lengths)]


class _DomainImages(Dataset):
    """One domain's generated images as the host's loader sees them."""

    def __init__(
        self,
        store: ImageStore,
        rows: range,
        labels: torch.Tensor,
        source: Dataset,
        pixel_range: pixels.PixelRange,
    ):
        self.store, self.rows, self.labels, self.source = store, rows, labels, source
        self.pixel_range = pixel_range

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        """(x as the classifier takes it, label, row)."""
        row = self.rows[index]
        x = pixels.training_version(self.store.images[row], self.source, self.pixel_range)
        return x, int(self.labels[index]), row

    def __len__(self) -> int:
        return len(self.rows)


def _progress_bar(number: int, images: int) -> tqdm:
    """Written to the terminal's stderr, because the host copies sys.stderr into err.txt."""
    return tqdm(total=images, desc=f"generation round {number}", file=sys.__stderr__, disable=None, leave=False)


@contextlib.contextmanager
def _seeded_by(*identity: Any) -> Iterator[None]:
    """Seed torch's CPU generator by identity inside the block, and restore its state afterwards.

    So the raw minibatches of a run do not depend on whether images are generated.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*identity))
        yield
