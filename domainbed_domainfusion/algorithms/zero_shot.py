"""The two diffusion classifiers of the supplement's Table 5. They are zero-shot: nothing is trained or selected.

Both score each class by how well the frozen diffusion model φ predicts an image's noise from the class's prompt;
`diffusion/class_scores.py` has the mathematics. In a sweep a job of theirs takes one step, and its evaluation is the
result.
"""

from typing import TYPE_CHECKING

import torch

from ..diffusion.source import resolve_source
from ..hosting import context, host
from ..hosting import hparams as table
from ..hosting.held_out_ldm import with_ldm_of_this_process
from ..pixels import PixelRange
from ..seeding import seed_of
from .by_image import EvaluationBar, ImageCache, digests

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.class_scores import NoiseErrors
    from ..diffusion.prompted import PromptedModel

#: A process caches scores of this many bytes. DomainNet's, of 586,575 images and 345 classes, take 0.75 GiB.
REMEMBERED_BYTES = 2**30


class ZeroShotClassifier(host.algorithms.Algorithm):
    """An algorithm without parameters and optimizer. φ is loaded at the first prediction, and all algorithms in the
    process share it. state_dict, parameters, deepcopy and pickle do not hold φ.

    The noise for an image is seeded by the run's seed and the image's pixels. So a score depends neither on the rest of
    the batch nor on earlier evaluations. Nothing is learned from a test environment.

    Raises InputError for hparams out of range and for a diffusion model that cannot be used.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict):
        table.check_values(hparams)
        hparams = with_ldm_of_this_process(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        context.require_run()
        self.num_classes = num_classes
        self.pixel_range = PixelRange.of(input_shape, context.current().dataset)
        self.class_names = context.prompt_names(hparams["class_names"], num_classes)
        resolve_source(hparams["ldm"], hparams["ldm_revision"])
        self._model: PromptedModel | None = None
        self._remembered = ImageCache(REMEMBERED_BYTES)
        self._progress = EvaluationBar("zero-shot evaluation")

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """Does nothing: there is nothing to train, and no loss to report."""
        return {}

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, num_classes), higher is better, of x (B, C, H, W) after the host's transform."""
        keys = digests(x)
        scores = self._remembered.of(
            keys, lambda places: self._score_images(x[places], [keys[place] for place in places]).float()
        )
        self._progress.update(len(x))
        return scores.to(x.device)

    def _score_images(self, x: torch.Tensor, keys: list[str]) -> torch.Tensor:
        """(B, num_classes) float64 on the CPU."""
        from ..diffusion.class_scores import NoiseErrors  # here, because diffusers takes seconds to import
        from ..diffusion.prompted import PromptedModel

        if self._model is None:
            self._model = PromptedModel.load(self.hparams, self.class_names, x.device)
        images = self.pixel_range.to_diffusion(x, self.hparams["image_size"])
        errors = NoiseErrors(self._model.ldm, self._model.prompts, images, self.hparams["scoring_batch"])
        seed = context.current().seed
        return self._scores(errors, [seed_of(seed, type(self).__name__, key) for key in keys])

    def _scores(self, errors: "NoiseErrors", seeds: list[int]) -> torch.Tensor:
        raise NotImplementedError

    def __getstate__(self) -> dict:
        """Copies and pickles hold only the settings."""
        return {**self.__dict__, "_model": None}


class DiffusionClassifier(ZeroShotClassifier):
    """Li et al., ICCV 2023: the class with the lowest mean error at evenly spaced timesteps, by staged elimination."""

    def _scores(self, errors, seeds):
        from ..diffusion.class_scores import staged_elimination

        return staged_elimination(
            errors,
            errors.latents.shape[1:],
            seeds,
            self.num_classes,
            self.hparams["dc_stages"],
            errors.ldm.num_train_timesteps,
        )


class TextToImageClassifier(ZeroShotClassifier):
    """Clark & Jaini, NeurIPS 2023: the class with the lowest weighted x0-error, others pruned by a paired t-test."""

    def _scores(self, errors, seeds):
        from ..diffusion.class_scores import PairedTestPruning, x0_weights

        pruning = PairedTestPruning(
            self.hparams["t2i_min_scores"],
            self.hparams["t2i_max_scores"],
            self.hparams["t2i_cutoff"],
            x0_weights(errors.ldm.alphas_cumprod),
        )
        return pruning(errors, errors.latents.shape[1:], seeds, self.num_classes, errors.micro_batch)
