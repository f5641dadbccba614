"""Diffusion-TTA (Prabhudesai et al., NeurIPS 2023): the diffusion model adapts the classifier to each test image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..hosting import context
from ..seeding import generator_of
from .ascent import at_weights, gradients_of
from .at_test_time import DiffusionAtTestTime
from .by_image import digests

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.mixed_prompt import MixedPromptLoss

NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class DiffusionTTA(DiffusionAtTestTime):
    """Before each answer θ takes `tta_steps` steps that lower φ's error in predicting the noise of the test image.

    The condition of φ is the mean of the classes' text embeddings, weighted by the class probabilities that θ gives.
    The adapted θ answers. Then θ and its gradients are put back, bit for bit. θ stays in eval mode, so batch-norm
    statistics are used as they are and do not change.

    Each image is adapted to and answered alone. Its timesteps and noise are seeded by the run, its pixels and the step.
    So an answer depends on no other image, bit for bit. With `tta_steps` 0 it is ERM.

    Raises InputError if the network has none of the parameters that `tta_parameters` names.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.class_names = context.prompt_names(hparams["class_names"], num_classes)
        self._loss: MixedPromptLoss | None = None
        if not self.adapted_weights():
            raise InputError(
                f"The hparam tta_parameters is {hparams['tta_parameters']}, but the network has no such parameters: "
                "use all or classifier."
            )

    def adapted_weights(self) -> list[Tensor]:
        """The parameters that move: those that `tta_parameters` names and that training moves too."""
        which = self.hparams["tta_parameters"]
        if which == "normalisation":
            layers = [layer for layer in self.network.modules() if isinstance(layer, NORMALISATION)]
            found = [weight for layer in layers for weight in layer.parameters(recurse=False)]
        else:
            found = list((self.classifier if which == "classifier" else self.network).parameters())
        return [weight for weight in found if weight.requires_grad]

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor:
        if self.hparams["tta_steps"] == 0:
            return self.classify(x)
        return torch.cat([self.adapted_answer(image, key) for image, key in zip(x.split(1), digests(x))])

    def adapted_answer(self, x: Tensor, key: str) -> Tensor:
        """Logits (1, classes) of one image x (1, C, H, W). key: of its random numbers."""
        loss, weights, step_size = self.loss(x.device), self.adapted_weights(), self.hparams["tta_lr"]
        latents = loss.latents(self.pixel_range.to_diffusion(x, self.hparams["image_size"]))
        optimizer: torch.optim.Optimizer
        if self.hparams["tta_optimizer"] == "sgd":
            optimizer = torch.optim.SGD(weights, lr=step_size, momentum=0.9)
        else:
            optimizer = torch.optim.Adam(weights, lr=step_size)
        with put_back(weights):
            for step in range(self.hparams["tta_steps"]):
                t, noise = self.draws(key, step, latents)
                with torch.enable_grad():
                    probabilities = self.classify(x).softmax(-1)[0]
                    _, slope = loss(latents, probabilities, t, noise)
                    gradients = gradients_of((slope.to(probabilities) * probabilities).sum(), weights)
                for weight, gradient in zip(weights, gradients):
                    weight.grad = gradient
                optimizer.step()
            return self.classify(x)

    def draws(self, key: str, step: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """t (N,) uniform over the schedule, ε (N, C, h, w) for `tta_draws` N; drawn on the CPU."""
        generator = generator_of(context.current().seed, "DiffusionTTA", key, step)
        count = self.hparams["tta_draws"]
        t = torch.randint(self.loss(latents.device).ldm.num_train_timesteps, (count,), generator=generator)
        return t, torch.randn(count, *latents.shape[1:], generator=generator)

    def loss(self, device: torch.device) -> "MixedPromptLoss":
        """φ's loss under the prompts of the classes; φ is loaded at the first call."""
        from ..diffusion.mixed_prompt import MixedPromptLoss
        from ..diffusion.prompted import PromptedModel

        if self._loss is None:
            self._model = self._model or PromptedModel.load(self.hparams, self.class_names, device)
            self._loss = MixedPromptLoss(self._model.ldm, self._model.prompts, self.hparams["test_time_batch"])
        return self._loss

    @staticmethod
    def diffusion_work(hparams: dict[str, Any], domains: int) -> str:
        count = hparams["tta_steps"] * hparams["tta_draws"]
        return f"{count:,} evaluations of the U-Net with a gradient for each image in each evaluation" if count else ""

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_loss": None}


@contextmanager
def put_back(weights: list[Tensor]) -> Iterator[None]:
    """After the block the weights and their gradients are what they were, bit for bit."""
    gradients = [weight.grad for weight in weights]
    try:
        with at_weights(weights, ()):  # which begins with the weights as they are
            yield
    finally:
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
