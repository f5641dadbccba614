"""InvDiff (Hou et al., KDD 2025): a second U-Net learns what the training domains share, and guides the frozen one."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from .evaluations import COUNT
from .fine_tuning import Pictures, fine_tuned
from .prompted import PromptedModel


class InvariantGuidance(torch.nn.Module):
    """Two U-Nets in the place of one: (1 − r) ε_φ + r ε_ψ, with r the share of the learned one."""

    def __init__(self, frozen: Any, learned: Any, share: float) -> None:
        """frozen: φ. learned: ψ, of the same architecture. share: r in [0, 1]."""
        super().__init__()
        self.frozen, self.learned, self.share = frozen, learned, share

    @property
    def config(self) -> Any:
        """φ's, which `LatentDiffusion` reads."""
        return self.frozen.config

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, timestep_cond: Tensor | None = None
    ) -> UNet2DConditionOutput:
        """As diffusers' UNet2DConditionModel. The second evaluation is counted here, the first by the caller."""
        COUNT.add(len(sample))
        frozen, learned = (
            unet(
                sample.to(unet.dtype),
                timestep,
                encoder_hidden_states=encoder_hidden_states.to(unet.dtype),
                timestep_cond=timestep_cond,
            ).sample.to(sample.dtype)
            for unet in (self.frozen, self.learned)
        )
        return UNet2DConditionOutput(sample=torch.lerp(frozen, learned, self.share))


def invariantly_guided(
    model: PromptedModel, domains: Sequence[Pictures], hparams: dict[str, Any], identity: tuple
) -> PromptedModel:
    """The model whose noise prediction is guided by a U-Net ψ that is learned on the domains; φ is not changed.

    ψ begins as φ. It lowers the error of the guided prediction under the images' own prompts: its mean over the domains
    plus `invariant_weight` times its variance between them (`fine_tuning.fine_tuned`).
    domains: with the labels of the images as the numbers of their prompts. identity: of all random numbers.
    """
    frozen = model.ldm._unet
    ldm = fine_tuned(
        model.ldm,
        model.prompts.conditional,
        domains,
        steps=hparams["invariant_steps"],
        rate=hparams["invariant_lr"],
        batch=hparams["invariant_batch"],
        identity=identity,
        name="for invariant guidance",
        variance=hparams["invariant_weight"],
        network=partial(InvariantGuidance, frozen, share=hparams["invariant_share"]),
    )
    return PromptedModel(ldm, model.prompts)
