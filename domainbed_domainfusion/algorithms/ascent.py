"""What the algorithms that look for flat minima share: gradients, their norm, and passes at other weights."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


def gradients_of(
    loss: Tensor, weights: list[Tensor], create_graph: bool = False, retain_graph: bool | None = None
) -> list[Tensor]:
    """One gradient per weight; zero for a weight that the loss does not use.

    create_graph: the gradients can be differentiated again. retain_graph: so can the loss; if None, as create_graph.
    """
    gradients = torch.autograd.grad(
        loss, weights, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients)]


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """One L2 norm over all entries of all tensors, a scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


def over(radius: float | Tensor, norm: Tensor) -> Tensor:
    """radius / norm, a scalar. A zero gradient has no direction: the quotient is then finite."""
    return radius / norm.clamp_min(1e-12)


@contextmanager
def at_weights(weights: list[Tensor], values: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block the weights have these values; afterwards they are, bit for bit, what they were.

    The values are read one after the other, each just before its weight is replaced.
    """
    with torch.no_grad():
        originals = [weight.clone() for weight in weights]
        for weight, value in zip(weights, values):
            weight.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals):
                weight.copy_(original)


def moved_by(weights: list[Tensor], steps: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Inside the block each weight is moved by its step."""
    return at_weights(weights, (weight + step for weight, step in zip(weights, steps)))


@contextmanager
def unmoved_statistics(network: nn.Module) -> Iterator[None]:
    """Inside the block batch-norm layers normalise as they do outside. Afterwards their buffers are as before."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(buffer, buffer.clone()) for layer in layers if layer.training for buffer in layer.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def step_along(optimizer: torch.optim.Optimizer, weights: list[Tensor], gradients: Iterable[Tensor]) -> None:
    """One step of the optimizer with these gradients."""
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient
    optimizer.step()
