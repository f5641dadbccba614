"""The algorithms: ERM, and those that `register` adds."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import networks
from .lib.lookup import class_named

ALGORITHMS = ["ERM"]

Minibatches = list[tuple[torch.Tensor, torch.Tensor]]


def get_algorithm_class(algorithm_name: str) -> type["Algorithm"]:
    """The algorithm of that name, registered ones included; raises InputError with the nearest name for others."""
    return class_named(globals(), algorithm_name, Algorithm, "algorithm", ALGORITHMS)


class Algorithm(nn.Module):
    """What `scripts.train` trains: `update` makes one step, `predict` gives logits."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: dict[str, Any]):
        super().__init__()
        self.hparams = hparams

    def update(self, minibatches: Minibatches, unlabeled: list[torch.Tensor] | None = None) -> dict[str, float]:
        """One step on [(x (B, C, H, W), y (B,))], one pair per training domain; returns numbers to log.

        The keys are the same at every step. `unlabeled` holds one batch per test domain for domain adaptation.
        """
        raise NotImplementedError

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> logits (B, num_classes)."""
        raise NotImplementedError


class ERM(Algorithm):
    """Empirical risk minimisation (Vapnik 1998): cross-entropy on all domains' batches together, Adam."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: dict[str, Any]):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"])
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"]
        )

    def update(self, minibatches: Minibatches, unlabeled: list[torch.Tensor] | None = None) -> dict[str, float]:
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        loss = F.cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


from .. import register  # noqa: E402,F401  (last, because it adds to this module; a DomainBed checkout gets the same line)
