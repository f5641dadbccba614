"""DeepCache (Ma, Fang and Wang, CVPR 2024): steps that reuse the U-Net's deep features of an earlier step."""

from typing import Any

import torch
from torch import Tensor

from .model import LatentDiffusion


class FeatureReuse:
    """The U-Net for the steps of one batch: every k-th pass is whole, the others run its outermost layers alone.

    The last ResNet of the U-Net joins two things: the features of all deeper layers, and the skip connection from
    `conv_in`. Deep features change little from step to step. So a shallow pass takes those of the last whole pass, and
    computes `conv_in`, that ResNet, its attention if it has one, and the output layers. This is the paper's uniform
    caching at its outermost branch. A pass with another number of latents than the one before is whole.
    """

    def __init__(self, ldm: LatentDiffusion, every: int) -> None:
        """every: k; with 1 every pass is whole."""
        self.ldm, self.every = ldm, every
        self._passes = 0  # since the last whole one, itself included
        self._deep: Tensor | None = None  # (rows, C, h, w), of the last whole pass

    def predict(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor, guidance_scale: float = 1.0) -> Tensor:
        """As `LatentDiffusion.predict`, without a graph. `evaluations.COUNT` counts the whole passes."""
        if self.every == 1:
            return self.ldm.predict(latents, timesteps, embeddings, guidance_scale)
        if self._deep is None or self._passes == self.every or len(self._deep) != len(latents):
            self._passes, self._deep = 0, None
        self._passes += 1
        if self._deep is not None:
            return self._shallow(self._deep, latents, timesteps, embeddings, guidance_scale)
        hook = self._unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(self._keep)
        try:
            return self.ldm.predict(latents, timesteps, embeddings, guidance_scale)
        finally:
            hook.remove()

    @property
    def _unet(self) -> Any:
        return self.ldm._unet

    def _keep(self, resnet: Any, inputs: tuple) -> None:
        """The hook on the last ResNet, whose input is (deep features, skip connection)."""
        self._deep = inputs[0][:, : -self._unet.conv_in.out_channels].clone()

    @torch.no_grad()
    def _shallow(
        self, deep: Tensor, latents: Tensor, timesteps: Tensor, embeddings: Tensor, guidance_scale: float
    ) -> Tensor:
        """The parts of diffusers' `UNet2DConditionModel.forward` that are not deep, in its order."""
        unet, last = self._unet, self._unet.up_blocks[-1]
        x = latents.to(self.ldm.device, self.ldm.dtype)
        time = unet.get_time_embed(sample=x, timestep=timesteps.to(self.ldm.device))
        time = unet.time_embedding(time, self.ldm.guidance_embedding(guidance_scale))
        x = last.resnets[-1](torch.cat([deep, unet.conv_in(x)], dim=1), time)
        if getattr(last, "attentions", None):
            x = last.attentions[-1](x, encoder_hidden_states=embeddings.to(x), return_dict=False)[0]
        if unet.conv_norm_out is not None:
            x = unet.conv_act(unet.conv_norm_out(x))
        return unet.conv_out(x)
