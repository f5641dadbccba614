"""Where the random numbers of Latent Distillation come from: one seed per image, and its stratum of timesteps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Where the random numbers of one image come from."""

    seed: int  # of t, ε and the corruption
    stratum: tuple[int, int] | None = None  # (i, B): the image's place among B images whose t are stratified

    def timestep(self, first: int, end: int, draw: int, draws: int, generator: torch.Generator) -> Tensor:
        """t of one of `draws` draws, uniform in [first, end), within its stratum if there is one."""
        if self.stratum is None:
            return torch.randint(first, end, (), generator=generator)
        place, images = self.stratum
        share = (draw * images + place + torch.rand((), generator=generator, dtype=torch.float64)) / (images * draws)
        return (first + share * (end - first)).long().clamp(max=end - 1)
