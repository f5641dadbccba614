"""An algorithm of the host, trained in this process: whole, or captured after some steps and restored into a new one."""

import json

import numpy as np
import torch

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming import generators
from domainbed_domainfusion.resuming.capture import Capture
from domainbed_domainfusion.resuming.restore import Restore

CLASSES, DOMAINS = 4, 3


def build(name: str, **hparams):
    """A new algorithm on 28-pixel images, its weights seeded, and the minibatches of eight steps."""
    torch.manual_seed(1)
    np.random.seed(1)
    values = {**host.hparams_registry.default_hparams(name, "RotatedMNIST"), **hparams}
    return host.algorithms.get_algorithm_class(name)(
        (2, 28, 28) if host.NAME == "domainbed" else (1, 28, 28), CLASSES, DOMAINS, values
    )


def minibatches(steps: int, size: int = 8):
    generator = torch.Generator().manual_seed(2)
    channels = 2 if host.NAME == "domainbed" else 1
    return [
        [
            (torch.rand(size, channels, 28, 28, generator=generator), torch.arange(size) % CLASSES)
            for _ in range(DOMAINS)
        ]
        for _ in range(steps)
    ]


def train(algorithm, batches) -> list[dict]:
    return [algorithm.update(batch, None) for batch in batches]


def whole_and_restored(name: str, steps: int = 6, after: int = 3, **hparams):
    """(state, returned values, generators) of the uninterrupted run, and of one that was restored after some steps."""
    batches = minibatches(steps)
    algorithm = build(name, **hparams)
    results = train(algorithm, batches[:after])
    capture = Capture(algorithm)
    tree, tensors, state = json.loads(json.dumps(capture.tree)), capture.tensors, generators.state()
    results += train(algorithm, batches[after:])
    whole = (full_state(algorithm), results[after:], generators.state())

    other = build(name, **hparams)
    if Restore(other, tree, tensors).missing:
        other.update(batches[after], None)
        assert not Restore(other, tree, tensors).missing
    generators.set_state(state)
    results = train(other, batches[after:])
    return whole, (full_state(other), results, generators.state())


def full_state(algorithm) -> dict[str, torch.Tensor]:
    """state_dict, and everything else that the capture finds."""
    return {
        **algorithm.state_dict(),
        **{f"captured {name}": value for name, value in Capture(algorithm).tensors.items()},
    }


def equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
        for name in one
    )


def main() -> None:
    """Print for each algorithm of the host whether the restored run equals the whole one."""
    import sys
    import traceback

    for name in sys.argv[1:] or host.algorithms.ALGORITHMS:
        try:
            whole, restored = whole_and_restored(name)
            same = (
                equal_states(whole[0], restored[0]),
                json.dumps(str(whole[1])) == json.dumps(str(restored[1])),
                whole[2] == restored[2],
            )
            print(f"{name}: {'equal' if all(same) else f'not equal {same}'}")
        except Exception as error:
            traceback.print_exc(limit=-3)
            print(f"{name}: failed, {type(error).__name__}: {error}")


if __name__ == "__main__":
    import domainbed_domainfusion.register  # noqa: F401

    main()
