"""Distribution Shift Inversion (DSI; Yu et al., CVPR 2023): a test image is moved towards the training domains."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..hosting import context
from ..pixels import from_store, to_store
from ..seeding import seed_of
from .at_test_time import DiffusionAtTestTime
from .by_image import ImageCache, digests
from .domain_models import check_fine_tuning, fine_tuned_models


class DSI(DiffusionAtTestTime):
    """ERM whose unsure answers are averaged with those on views of the image in the style of the training domains.

    A view is the image noised to a start time of a DDIM schedule and denoised without a prompt by the diffusion model
    of one training domain. Start times rise until the largest class probability of the mean logits of image and views
    is above `dsi_threshold`. If it never is, the answer is ERM's.

    The diffusion models of the domains are copies of φ, fine-tuned on the domains' in-splits with the empty prompt
    for `dsi_finetune_steps` steps before the first view is made. With 0 steps there is one view, by φ itself.
    A process keeps the models and the views; nothing of them is saved. A resumed run makes them again, the same on a
    CPU. Views do not depend on the classifier, and an image's views not on the rest of the batch (up to rounding).

    Raises InputError if a start time is not on the schedule, or if φ cannot be fine-tuned in the memory at hand.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["dsi_starts"][-1] > hparams["dsi_steps"]:
            raise InputError(
                f"The hparam dsi_starts is {hparams['dsi_starts']}, but the schedule has {hparams['dsi_steps']} steps: "
                "give start times up to dsi_steps."
            )
        if hparams["dsi_finetune_steps"] and context.current().in_splits:
            check_fine_tuning(self.ldm_path, hparams, len(context.current().in_splits), "dsi_finetune_steps")
        self._views = ImageCache(int(hparams["test_time_cache_gb"] * 2**30))
        self._domain_models: list | None = None

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor:
        """The gate. Logits of image and views are averaged with equal weights."""
        original = self.classify(x)
        answers, unsure = original.clone(), torch.arange(len(x), device=x.device)
        unsure = unsure[~self.is_sure(original)]
        keys = dict(zip(unsure.tolist(), digests(x[unsure])))
        for start in self.hparams["dsi_starts"]:
            if not len(unsure):
                break
            views = self.views(x[unsure], [keys[i] for i in unsure.tolist()], start)
            of_views = self.classify(views.flatten(0, 1)).unflatten(0, views.shape[:2])
            ensemble = (original[unsure] + of_views.sum(1)) / (1 + views.shape[1])
            sure = self.is_sure(ensemble)
            answers[unsure[sure]] = ensemble[sure]
            unsure = unsure[~sure]
        return answers

    def is_sure(self, logits: Tensor) -> Tensor:
        """(B, classes) → (B,): whether the largest class probability is above the threshold."""
        return logits.softmax(-1).amax(-1) > self.hparams["dsi_threshold"]

    def views(self, x: Tensor, keys: list[str], start: int) -> Tensor:
        """x (B, C, H, W) → (B, models, C, H, W), the classifier's input. keys: of the images; start: of `dsi_starts`.

        Views are 8-bit images, whether they come from the cache or not.
        """

        def new_views(places: list[int]) -> Tensor:
            parts = torch.tensor(places).split(self.hparams["test_time_batch"])
            return torch.cat([self._new_views(x[part], [keys[place] for place in part], start) for part in parts])

        stored = self._views.of([f"{key} {start}" for key in keys], new_views)
        views = self.pixel_range.to_classifier(from_store(stored.flatten(0, 1).to(x.device)))
        return views.unflatten(0, stored.shape[:2])

    def _new_views(self, x: Tensor, keys: list[str], start: int) -> Tensor:
        """(B, models, 3, S, S) uint8."""
        from ..diffusion.candidates import CandidateSampler  # here, because diffusers takes seconds to import

        prompts = self._prompted_model(x.device).prompts
        images = self.pixel_range.to_diffusion(x, self.hparams["image_size"])
        steps, seed, views = self.hparams["dsi_steps"], context.current().seed, []
        for domain, ldm in enumerate(self.domain_models(x.device)):
            sampler = CandidateSampler(
                ldm, prompts, steps, strength=min(1.0, (start + 0.5) / steps), guidance_scale=1.0,
                batch_size=self.hparams["test_time_batch"],
            )  # fmt: skip
            seeds = [[seed_of(seed, "DSI view", domain, start, key)] for key in keys]
            views.append(to_store(sampler.sample(images, torch.zeros(len(x)), seeds).images[:, 0]))
        return torch.stack(views, 1)

    def domain_models(self, device: torch.device) -> list:
        """The diffusion model of each training domain; φ alone without fine-tuning."""
        if self._domain_models is None:
            model = self._prompted_model(device)
            tuned = self.hparams["dsi_finetune_steps"] > 0
            self._domain_models = fine_tuned_models(model, self.hparams) if tuned else [model.ldm]
        return self._domain_models

    def _prompted_model(self, device: torch.device) -> Any:
        """φ with the empty prompt."""
        from ..diffusion.prompted import PromptedModel

        if self._model is None:
            self._model = PromptedModel.load({**self.hparams, "prompt_template": "{}"}, [""], device)
        return self._model

    @staticmethod
    def diffusion_work(hparams: dict[str, Any], domains: int) -> str:
        if hparams["dsi_threshold"] == 0:
            return ""
        steps = hparams["dsi_finetune_steps"]
        work = (
            f"at most {sum(hparams['dsi_starts']) * (domains if steps else 1):,} evaluations of the U-Net for each "
            "image, once in a run as far as test_time_cache_gb reaches"
        )
        return f"{work}, and {steps:,} steps of fine-tuning on each of {domains} domains" if steps else work

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_domain_models": None}
