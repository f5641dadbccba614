"""Average the weights of DomainBed's own algorithms: `python -m tests.upstream.averages NAMES`, in an attached copy.

Prints one JSON object: for each algorithm its class, whether training is the same as without an average, the largest
difference between its state dict and the mean of the saved weights, and whether its predictions are those of that mean.
"""

import json
import random
import sys

import numpy as np
import torch
from domainbed import algorithms, hparams_registry

SHAPE, STEPS = (3, 28, 28), 3


def seed(number: int) -> None:
    """Before everything that may draw: in MTL, even `predict` does."""
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(number)


def predicted(algorithm, x: torch.Tensor) -> torch.Tensor:
    seed(0)
    algorithm.eval()
    logits = algorithm.predict(x)
    algorithm.train()
    return logits


def built(name: str, **hparams):
    values = {**hparams_registry.default_hparams(name, "Debug28"), "batch_size": 4, **hparams}
    seed(0)
    return algorithms.get_algorithm_class(name)(SHAPE, 2, 3, values)


def trained(algorithm) -> list[dict[str, torch.Tensor]]:
    """The raw weights after each step, with an evaluation between the steps."""
    saved, generator = [], torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x, y = torch.randn(3, 4, *SHAPE, generator=generator), torch.randint(2, (3, 4), generator=generator)
        seed(step)
        algorithm.update(list(zip(x, y)), [x[0], x[1], x[2]])
        saved.append({name: t.detach().clone() for name, t in torch.nn.Module.state_dict(algorithm).items()})
        predicted(algorithm, x[0])
    return saved


def examined(name: str) -> dict:
    plain, averaged = built(name), built(name, weight_average="sma", weight_average_start=1)
    raw, saved = trained(plain), trained(averaged)
    same = [a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(raw, saved)]
    x, state = torch.randn(4, *SHAPE), averaged.state_dict()
    shapes = {key: {weights[key].shape for weights in saved if key in weights} for key in state}
    means = {
        key: torch.stack([weights[key] for weights in saved]).mean(0)
        for key, tensor in state.items()
        if tensor.is_floating_point() and len(shapes[key]) == 1 and all(key in weights for weights in saved)
    }
    plain.load_state_dict({**saved[-1], **means})
    return {
        "class": [type(averaged).__name__, isinstance(averaged, getattr(algorithms, name))],
        "same": all(same),
        "largest": max(float((state[key] - mean).abs().max()) for key, mean in means.items() if mean.numel()),
        "predicts": torch.allclose(predicted(averaged, x), predicted(plain, x), atol=1e-5),
        "moved": any(not torch.equal(state[key], saved[-1][key]) for key in means),
    }


if __name__ == "__main__":
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self  # TRM calls it
    print(json.dumps({name: examined(name) for name in sys.argv[1:]}))
