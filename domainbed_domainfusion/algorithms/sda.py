"""Synthetic-Domain Alignment (SDA; Guo et al., CVPR 2025): test images and a copy of the classifier meet in the images
of a diffusion model.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..digests import weights_digest
from ..errors import InputError
from ..hosting import context
from ..pixels import from_store, to_store
from ..seeding import seed_of
from .at_test_time import DiffusionAtTestTime
from .by_image import ImageCache, digests
from .tuned_copy import TunedCopy, fine_tuned_copy


class SDA(DiffusionAtTestTime):
    """logits of ERM's classifier on the image + `sda_weight` · logits of a fine-tuned copy on the projected image.

    Stage 1: images of each class are generated from its prompt, projected, and a copy of the classifier is fine-tuned
    on them. Stage 2: each test image is projected in the same way (`diffusion.projection`), with the empty prompt.

    Generated images and projections do not depend on the classifier: a process makes them once. The copy begins with
    the weights that are evaluated, so each checkpoint has its own. Nothing of all this is saved, and a resumed run
    makes it again, the same on a CPU. No image of the dataset is used in stage 1.

    Raises InputError if images are to be noised for more steps than the chain has.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["sda_noised"] > hparams["sda_steps"]:
            raise InputError(
                f"The hparam sda_noised is {hparams['sda_noised']}, but the chain has {hparams['sda_steps']} steps: "
                "give at most sda_steps."
            )
        self.class_names = context.prompt_names(hparams["class_names"], num_classes)
        self._projected = ImageCache(int(hparams["test_time_cache_gb"] * 2**30))
        self._synthetic: tuple[Tensor, Tensor] | None = None
        self._tuned: TunedCopy | None = None
        self._weights_known = False  # whether the weights are those of `_tuned`

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor:
        logits = self.classify(x)
        if self.hparams["sda_weight"] == 0:
            return logits
        keys = digests(x)
        stored = self._projected.of(
            keys, lambda places: self._projections(x[places], [keys[place] for place in places])
        )
        projected = self.pixel_range.to_classifier(from_store(stored.to(x.device)))
        return logits + self.hparams["sda_weight"] * self.tuned_copy(x.device)(projected)

    def _projections(self, x: Tensor, keys: list[str]) -> Tensor:
        """(B, 3, S, S) uint8."""
        images = self.pixel_range.to_diffusion(x, self.hparams["image_size"])
        return self.project(images, [seed_of(context.current().seed, "SDA projection", key) for key in keys])

    def project(self, images: Tensor, seeds: list[int]) -> Tensor:
        """images (B, 3, S, S) in [-1, 1] → uint8 on the CPU."""
        from ..diffusion.projection import Projection

        model, hparams = self._prompted_model(images.device), self.hparams
        projection = Projection(
            model.ldm,
            model.prompts.unconditional,
            steps=hparams["sda_steps"],
            noised=hparams["sda_noised"],
            weight=hparams["sda_scale"],
            factor=hparams["sda_low_pass"],
            batch=hparams["test_time_batch"],
        )
        return to_store(projection(images, seeds))

    def synthetic(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The generated and projected images (N, 3, S, S) uint8 and their labels (N,), made at the first call."""
        from ..diffusion.candidates import CandidateSampler

        if self._synthetic is None:
            hparams, seed, model = self.hparams, context.current().seed, self._prompted_model(device)
            sampler = CandidateSampler(
                model.ldm, model.prompts, hparams["sda_generation_steps"], source="prompt",
                guidance_scale=hparams["sda_guidance"], batch_size=hparams["test_time_batch"],
            )  # fmt: skip
            labels = torch.arange(len(self.class_names)).repeat_interleave(hparams["sda_images"])
            blank = torch.zeros(1, 3, hparams["image_size"], hparams["image_size"])
            parts = []
            bar = tqdm(total=len(labels), desc="SDA's images", leave=False, file=sys.__stderr__, disable=None)
            for rows in torch.arange(len(labels)).split(hparams["test_time_batch"]):
                seeds = [[seed_of(seed, "SDA image", row)] for row in rows.tolist()]
                images = sampler.sample(blank.expand(len(rows), -1, -1, -1), labels[rows], seeds).images[:, 0]
                parts.append(self.project(images, [seed_of(seed, "SDA image's projection", r) for r in rows.tolist()]))
                bar.update(len(rows))
            bar.close()
            self._synthetic = torch.cat(parts), labels
        return self._synthetic

    def tuned_copy(self, device: torch.device) -> nn.Module:
        """The copy of the present weights, in eval mode."""
        if not self._weights_known:
            digest = weights_digest(self.network)
            if self._tuned is None or self._tuned.began_with != digest:
                identity = (context.current().seed, "SDA fine-tuning")
                images, labels = self.synthetic(device)
                made = fine_tuned_copy(self.network, images, labels, self.pixel_range, self.hparams, identity)
                self._tuned = TunedCopy(made, digest)
            self._weights_known = True
        assert self._tuned is not None
        return self._tuned.network

    def train(self, mode: bool = True) -> Any:
        """The weights may have changed between two calls of the host's `eval` and `train`."""
        self._weights_known = False
        return super().train(mode)

    @staticmethod
    def diffusion_work(hparams: dict[str, Any], domains: int) -> str:
        if hparams["sda_weight"] == 0:
            return ""
        generation = hparams["sda_generation_steps"] * (2 if hparams["sda_guidance"] > 1 else 1)
        return (
            f"{hparams['sda_noised']:,} evaluations of the U-Net with a gradient for each image, once in a run as far "
            f"as test_time_cache_gb reaches, and {generation:,} without one and {hparams['sda_noised']:,} with one for "
            f"each of {hparams['sda_images']:,} generated images a class; the classifier is fine-tuned on these for "
            f"{hparams['sda_epochs']:,} epochs at each checkpoint"
        )

    def _prompted_model(self, device: torch.device) -> Any:
        """φ with the prompts of the classes."""
        from ..diffusion.prompted import PromptedModel

        if self._model is None:
            self._model = PromptedModel.load(self.hparams, self.class_names, device)
        return self._model

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_synthetic": None, "_tuned": None, "_weights_known": False}
