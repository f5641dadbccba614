"""LD noise images of a run's pictures: the residual ε_φ − ε of Latent Distillation with the run's LDM and prompts.

The paper does not say how its noise images are drawn. Ours: the root mean square over draws and latent channels. For
w = 1 the mean square of a noise image is then its LD loss.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ...diffusion.corruption import corrupt
from ...diffusion.distillation import LatentDistillation
from ...diffusion.prompted import PromptedModel
from ...errors import InputError
from ...pixels import from_store
from ...runs.trained_model import TrainedModel
from ...seeding import generator_of, seed_of
from .run import FiguresRun, FollowedImage, Version


@dataclass(frozen=True)
class Noise:
    """One corrupted image, its LD noise image and its LD loss."""

    image: torch.Tensor  # x'(p), (3, S, S) in [-1, 1]
    confidence: float  # p
    magnitude: torch.Tensor  # the LD noise image: root mean square of ε_φ − ε over draws and latent channels, (h, w)
    value: float  # LD


class NoiseImages:
    """Computes LD noise images for a run.

    All versions of one image share their seed, so that they differ in the image and in p only.
    """

    def __init__(self, run: FiguresRun, draws: int, ldm: str | None = None, data_dir: str | None = None):
        """draws: T; ldm: hub id or folder instead of the run's own; data_dir: see `TrainedModel.evaluation_transform`.

        Raises InputError if the LDM, or the run's model.pkl, cannot be used.
        """
        self.run, self.draws = run, draws
        self.hparams = {**run.hparams, "ldm": ldm or run.hparams["ldm"]}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._model = PromptedModel.load(self.hparams, run.class_names, self.device)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}; --ldm names another place of the run's model.") from error
        self._classifier: Any = None  # the host's algorithm, if there is a model.pkl
        if (run.folder / "model.pkl").is_file():
            trained = TrainedModel.read(run.folder)
            self._classifier = trained.algorithm(self.device, trained.evaluation_transform(data_dir), run.class_names)

    @property
    def confidence_source(self) -> str:
        """Where p comes from, as a clause for a caption."""
        if self._classifier is not None:
            return "p is the finished classifier's confidence in the true class"
        if self._recorded:
            return "p is the classifier's confidence in the true class as each round began (there is no model.pkl)"
        return "p is set to 1, as the run has neither a model.pkl nor recorded confidences"

    @property
    def _recorded(self) -> bool:
        return all(version.confidence is not None for image in self.run.images for version in image.versions.values())

    @property
    def scale_factor(self) -> int:
        """Image pixels per latent pixel."""
        return self._model.ldm.scale_factor

    def seed(self, image: FollowedImage) -> int:
        """The seed of an image's draws of t, ε and the corruption."""
        return seed_of(self.run.args["seed"], "figure", image.key)

    def confidences(self, image: FollowedImage, versions: list[Version]) -> torch.Tensor:
        """p of each version, (B,), from the source that `confidence_source` names."""
        if self._classifier is not None:
            return self._classifier.confidence(_stacked(versions), torch.full((len(versions),), image.label))
        if self._recorded:
            return torch.tensor([version.confidence for version in versions])
        return torch.ones(len(versions))

    def of_versions(self, image: FollowedImage, rounds: list[int]) -> dict[int, Noise]:
        """The noise image of the version of each of these rounds, by round, under the run's corruption."""
        versions = [image.versions[number] for number in rounds if number in image.versions]
        made = self._noise(image, _stacked(versions), self.confidences(image, versions), self.hparams["ld_corruption"])
        return {version.round: noise for version, noise in zip(versions, made)}

    def of_original(self, image: FollowedImage, confidences: list[float], corruption: str) -> list[Noise]:
        """The noise images of the original at each confidence p, under one corruption."""
        originals = _stacked([image.original] * len(confidences))
        return self._noise(image, originals, torch.tensor(confidences), corruption)

    def _noise(self, image: FollowedImage, x: torch.Tensor, p: torch.Tensor, corruption: str) -> list[Noise]:
        labels, seeds = torch.full((len(x),), image.label), [self.seed(image)] * len(x)
        distillation = LatentDistillation(
            self._model.ldm,
            self._model.prompts,
            draws=self.draws,
            weighting=self.hparams["ld_weighting"],
            guidance_scale=self.hparams["ld_guidance_scale"],
            timesteps=tuple(self.hparams["ld_timesteps"]),
            corruption=corruption,
        )
        residuals, values = distillation.noise_residuals(x, labels, p, seeds)
        magnitudes = residuals.square().mean((0, 2)).sqrt().cpu()
        corrupted = corrupt(x, p, corruption, [generator_of(seed, "corruption") for seed in seeds])
        return [Noise(*parts) for parts in zip(corrupted, p.tolist(), magnitudes, values.tolist())]


def _stacked(versions: list[Version]) -> torch.Tensor:
    return from_store(torch.stack([version.image for version in versions]))
