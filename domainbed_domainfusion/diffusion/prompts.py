"""Class name -> prompt -> text embedding, computed once."""

import copy

import torch
from torch import Tensor

from ..errors import InputError
from .model import LatentDiffusion


class Prompts:
    """The embeddings of one prompt per class and of the empty prompt, in label order.

    The template is ours: the paper names no prompt but says that no domain name appears in it.
    """

    def __init__(self, ldm: LatentDiffusion, class_names: list[str], template: str = "a photo of a {}") -> None:
        """template: has one "{}", which each class name replaces.

        Raises InputError for another template, and as `LatentDiffusion.embed` does.
        """
        if template.count("{}") != 1:
            raise InputError(f"The prompt template {template!r} must contain {{}} once, where the class name goes.")
        self.texts: list[str] = [template.replace("{}", name) for name in class_names]
        embeddings = ldm.embed([*self.texts, ""])
        self.conditional: Tensor = embeddings[:-1]  # (classes, L, D)
        self.unconditional: Tensor = embeddings[-1:]  # (1, L, D), for classifier-free guidance

    def part(self, classes: slice) -> "Prompts":
        """The prompts of some classes, whose labels then begin at 0."""
        part = copy.copy(self)
        part.texts, part.conditional = self.texts[classes], self.conditional[classes]
        return part

    def matched(self, labels: Tensor) -> Tensor:
        """c_y, the embedding of each label's own class: (B,) integers -> (B, L, D)."""
        return self.conditional[labels.to(self.conditional.device, torch.long)]
