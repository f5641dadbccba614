"""Several generate-datasets, one for each guide: the same images, each set generated under the guide's own prompts."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .dataset import Ahead, Generate, GenerateDataset
from .image_store import check_space, is_on_disk, store_bytes

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.candidates import CandidateSampler
    from ..diffusion.prompts import Prompts


class GuidedDatasets:
    """What an algorithm asks of one `GenerateDataset`, of several.

    Args:
        datasets: one for each guide, over the same in-splits.
        prompts: the prompts of each guide, in label order.
        sampler: gets the guide's prompts before a dataset generates.
    """

    saved = None  # each dataset has saved rounds of its own

    def __init__(self, datasets: list[GenerateDataset], prompts: list["Prompts"], sampler: "CandidateSampler"):
        self.datasets, self.prompts, self.sampler = datasets, prompts, sampler
        self.version = datasets[0].version

    @property
    def keys(self) -> list:
        """The source of each generated image, guide by guide."""
        return [key for dataset in self.datasets for key in dataset.keys]

    @property
    def rounds(self) -> int:
        """The number of rounds of the guide that has the fewest."""
        return min(dataset.rounds for dataset in self.datasets)

    @property
    def seconds_saved(self) -> float:
        """Generation time of those images of the last round that were read from disk."""
        return sum(dataset.seconds_saved for dataset in self.datasets)

    def refresh(self, step: int, generate: Generate, batch_size: int, ahead: Ahead | None = None) -> int:
        """One round of every guide; returns the number of generated images."""
        generated = 0
        for dataset, prompts in zip(self.datasets, self.prompts):
            self.sampler.prompts = prompts
            generated += dataset.refresh(step, generate, batch_size, ahead)
        return generated

    def minibatches(self, step: int) -> list[list[tuple[Tensor, Tensor]]]:
        """For each domain a generated minibatch (x, y) of every guide; they are empty if the domain has no image."""
        by_guide = []
        for dataset in self.datasets:
            x, y, _ = dataset.minibatch(step)
            sizes = [split.batch_size if rows else 0 for split, rows in zip(dataset.in_splits, dataset.rows)]
            by_guide.append(list(zip(x.split(sizes), y.split(sizes))))
        return [list(of_domain) for of_domain in zip(*by_guide)]

    def check_space(self, rounds: int) -> None:
        """Raise InputError if the disk is too small for the files of all guides together."""
        first, images = self.datasets[0], len(self.keys)
        each = len(first.keys)
        needed = len(self.datasets) * store_bytes(each, first.size) if is_on_disk(each, first.size) else 0
        if first.saved:
            first.saved.check_space(rounds, images, first.size, beside=needed)
        elif needed:
            check_space(first.folder, needed)

    def resume_state(self) -> dict[str, Any]:
        """Plain data for `load_resume_state`; see `GenerateDataset.resume_state`."""
        return {"guides": [dataset.resume_state() for dataset in self.datasets]}

    def load_resume_state(self, state: dict[str, Any], step: int) -> None:
        """Become what the datasets were at the start of `step`."""
        for dataset, of_dataset in zip(self.datasets, state["guides"]):
            dataset.load_resume_state(of_dataset, step)

    def delete_spare(self) -> None:
        """The run has ended: delete rounds that were kept only for being continued."""
        for dataset in self.datasets:
            if dataset.saved is not None:
                dataset.saved.delete_spare()
