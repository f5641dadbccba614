"""R5's reference: a plain implementation of Algorithm 1, image by image, with diffusers' pipeline and autograd.

It has DomainFusion's classifier, hparams, number of U-Net evaluations and minibatches. It lacks DomainFusion's means of
speed: candidates in batches, forward-mode Latent Distillation, and half precision.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_domainfusion.diffusion import style

from .host_run import HostRun
from .models import Model
from .references import Draw, Pipeline, noise_predictions


class NaiveDomainFusion:
    """Algorithm 1 with the generate-dataset as a list of images (3, S, S) in [-1, 1]."""

    def __init__(self, model: Model, run: HostRun, hparams: dict[str, Any], device: str) -> None:
        """run: an ERM run, for its network, optimizer and minibatches."""
        self.model, self.run, self.hparams, self.device = model, run, hparams, device
        self.network, self.optimizer = run.algorithm.network, run.algorithm.optimizer
        self.featurizer = run.algorithm.featurizer
        self.ldm, self.prompts = model.load(device, "float32")
        self.pipeline = Pipeline(model, device, "float32").with_scheduler(
            "DDIMScheduler", timestep_spacing=hparams["timestep_spacing"], clip_sample=False
        )
        self.dataset = [(2 * x - 1, int(y)) for split in run.in_splits for x, y in split]  # line 1
        self.seed = 0

    def interval(self) -> None:
        """Itv epochs: one round of generation, then one step per epoch."""
        self.network.eval()
        self.dataset = [(self.generate(x, y), y) for x, y in self.dataset]  # lines 4 to 13
        self.network.train()
        for _ in range(self.hparams["generation_interval"]):
            x, y = (torch.cat(parts) for parts in zip(*self.run.minibatches()))
            order = torch.randint(len(self.dataset), (len(x),)).tolist()
            self.step(
                x,
                y,
                torch.stack([self.dataset[i][0] for i in order]).to(self.device),
                torch.tensor([self.dataset[i][1] for i in order], device=self.device),
            )

    @torch.no_grad()
    def generate(self, x: Tensor, y: int) -> Tensor:
        """Lines 7 to 12 for one image."""
        mu0, sigma0, _ = style.decompose(x)  # line 8
        found = [self._candidate(x, y) for _ in range(self.hparams["candidates"])]  # line 7
        feature0 = self.featurizer(self._pixels(x))
        content, divergence = [], []
        for image in found:
            mu, sigma, _ = style.decompose(image)  # line 9
            similarity = F.cosine_similarity(feature0, self.featurizer(self._pixels(image))).item()
            confidence = self.network(self._pixels(image)).softmax(-1)[0, y].item()
            weight = self.hparams["content_weight"]
            content.append(weight * similarity + (1 - weight) * confidence)
            divergence.append(
                style.style_divergence(mu0, sigma0, mu[None], sigma[None], self.hparams["style_divergence"]).item()
            )
        _, _, chosen = style.decompose(found[content.index(max(content))])  # line 10
        mu, sigma, _ = style.decompose(found[divergence.index(max(divergence))])  # line 11
        return style.adain(mu, sigma, chosen).clamp(-1, 1)  # line 12

    def step(self, x: Tensor, y: Tensor, x_gen: Tensor, y_gen: Tensor) -> None:
        """Lines 14 to 17. x: (B, 3, S, S) in [0, 1], x_gen in [-1, 1]."""
        logits, logits_gen = self.network(torch.cat([x, x_gen / 2 + 0.5])).split([len(x), len(x_gen)])
        p = logits_gen.softmax(-1).gather(1, y_gen[:, None])[:, 0]
        loss = (
            self.hparams["lambda1"] * F.cross_entropy(logits, y)
            + self.hparams["lambda2"] * self.latent_distillation(x_gen, y_gen, p)
            + self.hparams["lambda3"] * F.cross_entropy(logits_gen, y_gen)
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def latent_distillation(self, images: Tensor, labels: Tensor, p: Tensor) -> Tensor:
        """Algorithm 2 with one draw. Autograd goes through the classifier, the encoder and the U-Net."""
        seeds = [self._next_seed() for _ in labels]
        draw = Draw.of(self.ldm, self.model.image_size, seeds, torch.float32)
        _, predicted = noise_predictions(self.ldm, images, p, self.prompts.matched(labels), draw)
        return (predicted - draw.noise).square().mean()

    def _candidate(self, x: Tensor, y: int) -> Tensor:
        made = self.pipeline(
            x[None],
            torch.tensor([y]),
            [self._next_seed()],
            num_inference_steps=self.hparams["denoising_steps"],
            strength=self.hparams["strength"],
            guidance_scale=self.hparams["guidance_scale"],
        )
        return made[0]

    def _pixels(self, x: Tensor) -> Tensor:
        """The classifier's input for one image."""
        return (x[None] / 2 + 0.5).to(self.device)

    def _next_seed(self) -> int:
        self.seed += 1
        return self.seed
