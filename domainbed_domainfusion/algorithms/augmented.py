"""ERM on augmented minibatches: RandAugment and AugMix, at the same steps as the algorithms that generate images."""

from typing import Any

import torch
from torch import Tensor
from torchvision import transforms

from ..hosting import context, host
from ..hosting import hparams as table
from ..pixels import PixelRange, from_store, to_store
from ..seeding import preserved_rng, seed_of


class AugmentedERM(host.algorithms.ERM):
    """ERM whose minibatches pass through an augmentation of torchvision, after the host's own transform.

    An image's augmentation is seeded by the run, the step, the domain and the image's place in its minibatch.
    Raises InputError for hparams out of range.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        context.require_run()
        self.pixel_range = PixelRange.of(input_shape, context.current().dataset)
        self.run_seed, self.step = context.current().seed, 0

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step of ERM on [(x, y)] per domain, x: (B, C, H, W), y: (B,), with x augmented; returns the loss."""
        minibatches = [(self.augmented(x, domain), y) for domain, (x, y) in enumerate(minibatches)]
        self.step += 1
        return super().update(minibatches, unlabeled)

    def augmented(self, x: Tensor, domain: int) -> Tensor:
        """x (B, C, H, W) in the classifier's range, augmented as 8-bit images by this step's seeds."""
        images = to_store(self.pixel_range.to_diffusion(x, x.shape[-1]))
        results = []
        with preserved_rng():  # torchvision draws from torch's global generator
            for i, image in enumerate(images):
                torch.manual_seed(seed_of(self.run_seed, "augmentation", self.step, domain, i))
                results.append(self.augmentation(image))
        return self.pixel_range.to_classifier(from_store(torch.stack(results)).to(x.device))

    def augmentation(self, image: Tensor) -> Tensor:
        """One image (3, H, W) uint8, augmented."""
        raise NotImplementedError


class RandAugment(AugmentedERM):
    """Cubuk et al., NeurIPS 2020: a few random operations on an image, all of one magnitude (torchvision's)."""

    def augmentation(self, image: Tensor) -> Tensor:
        return transforms.RandAugment(self.hparams["randaugment_operations"], self.hparams["randaugment_magnitude"])(
            image
        )


class AugMix(AugmentedERM):
    """Hendrycks et al., ICLR 2020: a random mixture of chains of operations (torchvision's).

    The paper's consistency loss between three views is left out: this is AugMix as an augmentation.
    """

    def augmentation(self, image: Tensor) -> Tensor:
        return transforms.AugMix(self.hparams["augmix_severity"], self.hparams["augmix_width"])(image)
