"""A network of two layers in float64, for an algorithm and for its twin, which is written on one flat vector θ.

The network is tanh(x·W1ᵀ + b1)·W2ᵀ + b2 for images of 2 × 2 pixels and 3 classes.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from domainbed_domainfusion.hosting import host

SHAPE, INPUTS, HIDDEN, CLASSES = (3, 2, 2), 12, 5, 3
SIZES = ((HIDDEN, INPUTS), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,))


def algorithm(name: str, **hparams):
    """The algorithm with that network in the place of the host's, and an Adam of its own."""
    values = {**host.hparams_registry.default_hparams(name, "Debug28"), "lr": 0.01, "weight_decay": 0.02, **hparams}
    torch.manual_seed(0)
    made = host.algorithms.get_algorithm_class(name)((3, 28, 28), CLASSES, 2, values)
    made.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.Tanh())
    made.classifier = nn.Linear(HIDDEN, CLASSES)
    made.network = nn.Sequential(made.featurizer, made.classifier)
    made.double()
    made.optimizer = torch.optim.Adam(made.network.parameters(), lr=values["lr"], weight_decay=values["weight_decay"])
    return made


def flat(made) -> Tensor:
    """θ of an algorithm."""
    return parameters_to_vector(made.network.parameters()).detach().clone()


def minibatches(steps: int) -> list:
    """The same for every caller: two domains of four images at each step."""
    generator = torch.Generator().manual_seed(2)
    return [
        [
            (
                torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64),
                torch.randint(CLASSES, (4,), generator=generator),
            )
            for _ in range(2)
        ]
        for _ in range(steps)
    ]


def joined(batch: list) -> tuple[Tensor, Tensor]:
    x, y = zip(*batch)
    return torch.cat(x), torch.cat(y)


def split(theta: Tensor) -> list[Tensor]:
    """W1, b1, W2 and b2 in θ."""
    parts = theta.split([torch.Size(size).numel() for size in SIZES])
    return [part.view(size) for part, size in zip(parts, SIZES)]


def features(theta: Tensor, x: Tensor) -> Tensor:
    w1, b1, _, _ = split(theta)
    return torch.tanh(x.flatten(1) @ w1.T + b1)


def probabilities(theta: Tensor, x: Tensor) -> Tensor:
    _, _, w2, b2 = split(theta)
    scores = (features(theta, x) @ w2.T + b2).exp()
    return scores / scores.sum(1, keepdim=True)


def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, image by image."""
    rows = probabilities(theta, x)
    return -sum(rows[i, y[i]].log() for i in range(len(x))) / len(x)


def gradient(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """∇L(θ)."""
    theta = theta.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(theta, x, y), theta)
    return found


class Adam:
    """Kingma and Ba's Algorithm 1 with the host's L2 weight decay, on a flat vector."""

    def __init__(self, lr: float = 0.01, weight_decay: float = 0.02):
        self.lr, self.weight_decay, self.t, self.m, self.v = lr, weight_decay, 0, 0.0, 0.0

    def step(self, theta: Tensor, g: Tensor) -> Tensor:
        g = g + self.weight_decay * theta
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return theta - self.lr * m / (v.sqrt() + 1e-8)
