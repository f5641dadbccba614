"""Cross-Domain Generative Augmentation (CDGA; Hemati et al. 2023), guided by prompts: offline, and then ERM."""

import os
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..generated.generation import Generation
from ..generated.guided import GuidedDatasets
from ..hosting import context, host
from ..hosting import hparams as table
from ..seeding import generator_of
from ..stopwatch import Stopwatch
from .domainfusion import DomainFusion, Minibatches

FOLDER = "guides"  # in the job's folder, a folder for each guide

#: Dataset → domain → what follows the class in a prompt. Ours: the paper has no list.
DESCRIPTIONS = {
    "PACS": {"A": "an art painting", "C": "a cartoon", "P": "a photo", "S": "a black and white sketch"},
    "OfficeHome": {"A": "an art picture", "C": "clip art", "P": "a product photo on white", "R": "a photo"},
    "DomainNet": {
        "clip": "clip art",
        "info": "an infographic",
        "paint": "a painting",
        "quick": "a quick line drawing",
        "real": "a photo",
        "sketch": "a pencil sketch",
    },
    "DigitStyles": {"H": "handwritten", "P": "printed", "O": "outlined", "A": "coloured art"},
}


class CDGA(DomainFusion):
    """ERM on each domain's images and, for each source domain, one generated version of every one of them.

    A version is image-to-image generation under the prompt "class, description of the domain". All are generated
    before the first step, with DomainFusion's diffusion model, store and saved rounds. Then each minibatch of a domain
    is drawn from the union of its images and their versions. Optimizer, hparams and `predict` are ERM's.

    The guides are the training domains. The test domain's description is used only with `cdga_starred` (CDGA*).
    Raises InputError if a guide has no description.
    """

    generate_dataset: GuidedDatasets | None  # type: ignore[assignment]

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        self.guides = guides(hparams)
        super().__init__(input_shape, num_classes, num_domains, self.completed(hparams))
        self.uses_diffusion = bool(self.guides)

    @staticmethod
    def completed(hparams: dict[str, Any]) -> dict[str, Any]:
        """With the values of DomainFusion's hparams that make one round, at step 0, of one candidate."""
        own = {row.name: row.default for row in table.DOMAINFUSION if row.name not in table.HOST_NAMES}
        fixed = {"updating": False, "sampling_strategy": False, "candidates": 1, "lambda2": 0.0, "lambda3": 1.0}
        return {**own, **hparams, **fixed}

    def load_diffusion(self, device: torch.device) -> None:
        """Load φ with the prompts of every class under every guide, and build a generate-dataset for each guide."""
        from ..diffusion.candidates import CandidateSampler  # here, because diffusers takes seconds to import
        from ..diffusion.prompted import PromptedModel

        names = [f"{name}, {description}" for description in self.guides.values() for name in self.class_names]
        model = PromptedModel.load(self.hparams, names, device)
        sampler, classes = CandidateSampler.of(model, self.hparams), len(self.class_names)
        starts = range(0, len(names), classes)
        prompts = [model.prompts.part(slice(start, start + classes)) for start in starts]
        self.generation = Generation(sampler, self._new_judge(), self.hparams, self._candidate_cache(sampler))
        datasets = []
        for guide, sampler.prompts in zip(self.guides, prompts):
            dataset = self._new_generate_dataset(self.generation, os.path.join(FOLDER, guide))
            dataset.workers = -(-dataset.workers // len(self.guides))  # all guides together have a dataset's workers
            datasets.append(dataset)
        self.generate_dataset = GuidedDatasets(datasets, prompts, sampler)
        if context.current().in_splits:
            self.generate_dataset.check_space(1)

    def update(self, minibatches: Minibatches, unlabeled: Any = None) -> dict[str, float]:
        """One step of ERM on minibatches of the unions, from [(x, y)] per domain, x: (B, C, H, W), y: (B,).

        Returns the loss, the number of generated images and the seconds of generation.
        """
        device = minibatches[0][0].device
        with Stopwatch(device) as generation:
            generated, seconds_saved = self._refresh_if_due(device)
        if not self.guides:
            self.generates_at(self.step)  # which warns at the first step
        values = host.algorithms.ERM.update(self, self.union(minibatches))
        self.step += 1
        seconds = generation.seconds + seconds_saved
        return {**values, "generated_images": float(generated), "generation_seconds": seconds}

    def union(self, minibatches: Minibatches) -> Minibatches:
        """In each place of a minibatch the raw image, or the one that a guide's minibatch has there.

        A place is a uniform draw from the domain's images and all their versions, seeded by run, step and domain.
        Outside a training run nothing is generated, and the minibatches stay as they are.
        """
        if self.generate_dataset is None or self.generate_dataset.rounds == 0:
            return minibatches
        first, drawn = self.generate_dataset.datasets[0], []
        for domain, ((x, y), guided) in enumerate(zip(minibatches, self.generate_dataset.minibatches(self.step))):
            raw, versions = len(first.in_splits[domain].keys), len(first.rows[domain])
            if not versions:
                drawn.append((x, y))
                continue
            generator = generator_of(context.current().seed, "CDGA union", self.step, domain)
            place = torch.randint(raw + versions * len(guided), (len(x),), generator=generator)
            source = torch.where(place < raw, 0, 1 + (place - raw) // versions).to(x.device)
            drawn.append((chosen([x, *(x for x, _ in guided)], source), chosen([y, *(y for _, y in guided)], source)))
        return drawn

    def resume_state(self) -> dict[str, Any]:
        """Plain data of what `__getstate__` leaves out; see `resuming.own_state`."""
        return {} if self.generate_dataset is None else self.generate_dataset.resume_state()

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take up `resume_state`'s data at the start of step `self.step`."""
        if state:
            self.load_diffusion(next(self.parameters()).device)
            assert self.generate_dataset is not None
            self.generate_dataset.load_resume_state(state, self.step)

    def training_ended(self) -> None:
        """The job is done and will not be continued: delete what it kept for that beside its checkpoints."""
        if self.generate_dataset is not None:
            self.generate_dataset.delete_spare()


def chosen(sources: list[Tensor], which: Tensor) -> Tensor:
    """From n tensors (B, …) of the same shape the rows (B, …): row b is that of the tensor which[b]."""
    stack = torch.stack([source.to(which.device) for source in sources])
    return stack[which, torch.arange(len(which), device=which.device)]


def guides(hparams: dict[str, Any]) -> dict[str, str]:
    """Domain → description, for the training domains of this run; with cdga_starred also for the test domains.

    Empty outside a training run. Raises InputError if a domain has no description.
    """
    table.check_values(hparams)
    run = context.current()
    dataset = type(run.dataset).__name__
    names = run.domain_names
    if hparams["cdga_starred"] and run.in_splits:
        training = {split.environment for split in run.in_splits}
        others = [context.domain_name(run.dataset, i) for i in range(len(run.environments)) if i not in training]
        names = [*names, *others]
    known = {**DESCRIPTIONS.get(dataset, {}), **(hparams["cdga_descriptions"] or {})}
    for name in names:
        if name not in known:
            raise InputError(
                f"CDGA has no description of the domain {name} of {dataset}: give one for each domain, for example "
                f'--hparams \'{{"cdga_descriptions": {{"{name}": "a photo"}}}}\'.'
            )
    return {name: known[name] for name in names}
