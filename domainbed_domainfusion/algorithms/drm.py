"""Domain-specific Risk Minimization (DRM; Zhang et al., KDD 2023): a classifier for each domain, chosen by entropy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hosting import context, host
from ..hosting import hparams as table
from ..seeding import preserved_rng, seed_of


class DRM(host.algorithms.ERM):
    """(1 − w)·CE(shared classifier) + w·CE(each domain's own classifier), on one featurizer.

    `network` is the featurizer with the shared classifier, as in ERM. Each training domain has a classifier beside it,
    which sees the images of its domain alone. w is `drm_weight`, ½ in the paper; with 0 training is ERM's, bit for bit.

    `drm_predict` says which classifiers answer:
    "batch": for all images of a batch the one, domain's or shared, whose predictions on the batch have the lowest mean
    entropy (the paper's plain prediction). An image's answer then depends on the batch that it comes in.
    "weighted": for each image the mixture of the domains' class probabilities by H^(−γ), where H is their entropy on
    that image and γ is `drm_gamma` (the weights of the paper's test-time version).
    "lowest": for each image the domain's classifier of lowest entropy.

    Departure: the paper's test-time version also trains the classifiers on test images. Here they stay as they are.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.domain_classifiers = nn.ModuleList()
        with preserved_rng():  # so that ERM's own random numbers do not move
            for domain in range(num_domains):
                torch.manual_seed(seed_of(context.current().seed, "DRM classifier", domain))
                self.domain_classifiers.append(
                    host.networks.Classifier(self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"])
                )
        self.optimizer.add_param_group({"params": list(self.domain_classifiers.parameters())})

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss and its two parts.

        The shared loss is the mean over all images, and the domains' loss the mean over domains. In the paper both are
        means over domains; the two are equal for the host's minibatches, which are of one size.
        """
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        features = self.featurizer(x)
        shared = F.cross_entropy(self.classifier(features), y)
        domains = zip(self.domain_classifiers, features.split([len(labels) for _, labels in minibatches]), minibatches)
        own = torch.stack([F.cross_entropy(classifier(part), labels) for classifier, part, (_, labels) in domains])
        weight = self.hparams["drm_weight"]
        loss = (1 - weight) * shared + weight * own.mean()

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item(), "shared_loss": shared.item(), "domain_loss": own.mean().item()}

    def predict(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, classes): logits for "batch" and "lowest", log probabilities for "weighted"."""
        features = self.featurizer(x)
        logits = torch.stack([classifier(features) for classifier in self.domain_classifiers])
        if self.hparams["drm_predict"] == "batch":
            logits = torch.cat([logits, self.classifier(features)[None]])
            return logits[entropy(logits).mean(1).argmin()]
        if self.hparams["drm_predict"] == "lowest":
            return logits[entropy(logits).argmin(0), torch.arange(len(x), device=logits.device)]
        weights = (-self.hparams["drm_gamma"] * entropy(logits).clamp_min(1e-12).log()).log_softmax(0)
        return (weights[..., None] + logits.log_softmax(-1)).logsumexp(0)


def entropy(logits: Tensor) -> Tensor:
    """H of the class probabilities in nats, from 0 to log(classes): logits (…, classes) → (…)."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
