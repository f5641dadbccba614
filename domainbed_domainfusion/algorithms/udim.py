"""Unknown Domain Inconsistency Minimization (UDIM; Shin et al., ICLR 2024), as in the authors' code."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hosting import context
from ..hosting import hparams as table
from .ascent import global_norm, gradients_of, moved_by, over, step_along, unmoved_statistics
from .sam import SAM

Gradients = dict[str, Tensor]  # of each image: the parameter's name -> (images, entries of the parameter)


class UDIM(SAM):
    """SAM, and from a share `udim_warm_up` of the run on also the inconsistency with an unknown domain.

    The unknown domain is the minibatch, moved one step towards a larger and sharper loss. The inconsistency compares
    how the gradients of single images vary in both; they are gradients of the classifier (the last layer) alone.

    Departures from the authors' code: the second phase goes on from the last weights of the first, not from those that
    were best on the validation split, because nothing of that split may reach training. The pass of the inconsistency
    leaves batch-norm statistics alone, and no batch-norm layer is replaced.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.step, self.warm_up = 0, self.warm_up_steps(context.current().total_steps, hparams)

    @staticmethod
    def warm_up_steps(total_steps: int, hparams: dict[str, Any]) -> int:
        """The number of steps of the first phase, SAM alone."""
        return int(total_steps * hparams["udim_warm_up"])

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss and the inconsistency."""
        self.step += 1
        if self.step <= self.warm_up:
            return {**super().update(minibatches, unlabeled), "inconsistency": 0.0}
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]

        loss, gradients, unknown = self.unknown_domain(x, y, trained)
        scale = over(self.hparams["rho"], global_norm(gradients))
        with moved_by(trained, (scale * gradient for gradient in gradients)):  # SAM's gradient
            sam = gradients_of(F.cross_entropy(self.predict(x), y), trained)

        sizes = [len(domain) for _, domain in minibatches] if self.hparams["udim_per_domain"] else [len(y)]
        with unmoved_statistics(self.network):
            inconsistency = self.inconsistency(x, unknown, y, sizes)
            away = gradients_of(inconsistency, trained)
        weight = self.hparams["udim_weight"]
        step_along(self.optimizer, trained, (a + weight * b for a, b in zip(sam, away)))
        return {"loss": loss.item(), "inconsistency": inconsistency.item()}

    def unknown_domain(self, x: Tensor, y: Tensor, trained: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """The loss L and ∇_θ L on x, and x̃ (B, C, H, W): x after one ascent step of L + ρ‖∇_θ L‖ in input space.

        udim_input "pixels": each pixel moves along its gradient, normalised over the batch. "style": only the mean and
        the standard deviation of each image's channels move, along their own gradients.
        """
        step = self.hparams["udim_step"]
        mean, deviation = x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt()
        style = self.hparams["udim_input"] == "style"
        moved = [value.detach().clone().requires_grad_() for value in ([mean, deviation] if style else [x])]
        normalised = (x - mean) / deviation

        loss = F.cross_entropy(self.predict(normalised * moved[1] + moved[0] if style else moved[0]), y)
        gradients = gradients_of(loss, trained, create_graph=True)
        ascent = torch.autograd.grad(loss + self.hparams["rho"] * global_norm(gradients), moved)
        with torch.no_grad():
            if style:
                mean, deviation = (value + step * along for value, along in zip(moved, ascent))
                unknown = normalised * deviation + mean
            else:
                unknown = x + step * F.normalize(ascent[0], dim=0)
        return loss, [gradient.detach() for gradient in gradients], unknown

    def inconsistency(self, x: Tensor, unknown: Tensor, y: Tensor, sizes: list[int]) -> Tensor:
        """The inconsistency of x and x̃, summed over consecutive parts of the minibatch with these sizes."""
        features = self.featurizer(torch.cat([x, unknown]))
        parts = zip(*(part.split(sizes) for part in (*features.chunk(2), y)))
        total = features.new_zeros(())
        for known, other, labels in parts:
            total = total + inconsistency_of(
                gradients_of_each_image(self.classifier, known, labels),
                gradients_of_each_image(self.classifier, other, labels),
            )
        return total


def gradients_of_each_image(classifier: torch.nn.Module, features: Tensor, y: Tensor) -> Gradients:
    """Gradients of each image's cross-entropy by the classifier's parameters, differentiable themselves.

    features: (B, features), y: (B,).
    """

    def loss(parameters: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(classifier, parameters, (row[None],)), label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    found = each(dict(classifier.named_parameters()), features, y)
    return {name: gradients.flatten(1) for name, gradients in found.items()}


def inconsistency_of(known: Gradients, unknown: Gradients) -> Tensor:
    """How differently gradients vary in two domains, and how large they are in the unknown one.

    Both variances are about the known domain's mean, entry by entry. The first term is the mean of both variances'
    mean squared distance to their mean, over all entries of all parameters. The second is the squared norm of an
    image's gradient in the unknown domain, mean over images, for each parameter divided by its number of entries.
    """
    means = {name: gradients.mean(0) for name, gradients in known.items()}
    first, second = (
        torch.cat([((gradients - means[name]) ** 2).mean(0) for name, gradients in domain.items()])
        for domain in (known, unknown)
    )
    middle = (first + second) / 2
    distance = torch.stack([((variance - middle) ** 2).mean() for variance in (first, second)]).mean()
    return distance + torch.stack([(gradients**2).mean() for gradients in unknown.values()]).sum()
