"""What the methods have in common that train a classifier as ERM does and ask the diffusion model when they predict."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..diffusion.source import resolve_source
from ..hosting import context, host
from ..hosting import hparams as table
from ..hosting.held_out_ldm import with_ldm_of_this_process
from ..pixels import PixelRange
from .by_image import EvaluationBar

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.prompted import PromptedModel


class DiffusionAtTestTime(host.algorithms.ERM):
    """ERM, bit for bit, but for `predict` in eval mode. In training mode `predict` is ERM's, because `update` calls it.

    The diffusion model φ is loaded at the first prediction that needs it, and all algorithms in the process share it.
    state_dict, parameters, deepcopy and pickle do not hold φ. No random number of the run is used, so evaluations do
    not change training. Nothing is learned from an image that is predicted.

    Raises InputError for hparams out of range and for a diffusion model that cannot be used.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        hparams = with_ldm_of_this_process(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        context.require_run()
        self.pixel_range = PixelRange.of(input_shape, context.current().dataset)
        self.ldm_path = str(resolve_source(hparams["ldm"], hparams["ldm_revision"]))
        self.steps_done = 0
        self._model: PromptedModel | None = None
        self._progress = EvaluationBar(f"{type(self).__name__} evaluation")

    def update(self, minibatches: list, unlabeled: Any = None) -> dict[str, float]:
        """ERM's step, on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss."""
        values = super().update(minibatches, unlabeled)
        self.steps_done += 1
        return values

    def predict(self, x: Tensor) -> Tensor:
        """(B, C, H, W) after the host's transform → (B, classes): logits."""
        if self.training or not self.asks_diffusion:
            return self.classify(x)
        answers = self.answer(x)
        self._progress.update(len(x))
        return answers

    @property
    def asks_diffusion(self) -> bool:
        """Whether an evaluation now asks φ: see the hparam `test_time_when`. Outside a training run it always does."""
        run = context.current()
        return self.hparams["test_time_when"] == "every" or not run.in_splits or self.steps_done >= run.total_steps

    def classify(self, x: Tensor) -> Tensor:
        """ERM's logits (B, classes)."""
        return host.algorithms.ERM.predict(self, x)

    def answer(self, x: Tensor) -> Tensor:
        """The method's logits (B, classes), in eval mode."""
        raise NotImplementedError

    @staticmethod
    def diffusion_work(hparams: dict[str, Any], domains: int) -> str:
        """What φ computes in a run, counted, for `domainfusion estimate`; empty for nothing. domains: for training."""
        raise NotImplementedError

    def __getstate__(self) -> dict:
        """Copies and pickles do not hold φ."""
        return {**self.__dict__, "_model": None}
