"""An algorithm of the host in this process: trained as a whole, or captured and restored into a new one.

`python -m tests.resuming.in_process`, in an attached checkout, compares all of DomainBed's. One needs an older
torch, which it says.
"""

import json
import sys

import numpy as np
import torch

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming import generators
from domainbed_domainfusion.resuming.capture import Capture
from domainbed_domainfusion.resuming.restore import restore

CLASSES, DOMAINS = 4, 3
#: They need a diffusion model and the host's train script; `test_killed_jobs` has DomainFusion.
NOT_WITHOUT_IMAGES = ("DomainFusion", "Synthetic", "CDGA", "DiffusionClassifier", "TextToImageClassifier")
CHANNELS = 2 if host.NAME == "domainbed" else 1  # two, as ColoredMNIST has


def build(name: str, **hparams):
    """A new algorithm on 28-pixel images, its weights seeded, and the minibatches of eight steps."""
    torch.manual_seed(1)
    np.random.seed(1)
    values = {**host.hparams_registry.default_hparams(name, "RotatedMNIST"), **hparams}
    return host.algorithms.get_algorithm_class(name)((CHANNELS, 28, 28), CLASSES, DOMAINS, values)


def minibatches(steps: int, size: int = 4):
    generator = torch.Generator().manual_seed(2)
    return [
        [
            (torch.rand(size, CHANNELS, 28, 28, generator=generator), torch.arange(size) % CLASSES)
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
    assert not restore(other, tree, tensors, lambda: other.update(batches[after], None))
    generators.set_state(state)
    results = train(other, batches[after:])
    return whole, (full_state(other), results, generators.state())


def full_state(algorithm) -> dict[str, torch.Tensor]:
    """state_dict, and everything else that the capture finds."""
    captured = Capture(algorithm).tensors
    return {**algorithm.state_dict(), **{f"captured {name}": value for name, value in captured.items()}}


def differences(whole, restored) -> list[str]:
    """Which of the three differ; not-a-number equals itself."""
    one, other = whole[0], restored[0]
    found = [] if one.keys() == other.keys() else ["names"]
    found += [
        name
        for name in one.keys() & other.keys()
        if one[name].dtype != other[name].dtype or not torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
    ]
    found += [] if str(whole[1]) == str(restored[1]) else ["returned values"]
    return found + ([] if whole[2] == restored[2] else ["generators"])


def main() -> int:
    """Print for each algorithm of the host whether the restored run equals the whole one; 1 if one does not."""
    unequal = 0
    if not torch.cuda.is_available():  # TRM and RDM ask for a GPU by name
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *arguments: self  # type: ignore[method-assign]
    for name in sys.argv[1:] or host.algorithms.ALGORITHMS:
        if name in NOT_WITHOUT_IMAGES:
            continue
        try:
            found = differences(*whole_and_restored(name))
        except Exception as error:
            print(f"{name}: does not run here ({type(error).__name__}: {str(error).splitlines()[0]})")
            continue
        unequal += bool(found)
        print(f"{name}: {'equal' if not found else f'NOT EQUAL ({found[0]})'}", flush=True)
    return 1 if unequal else 0


if __name__ == "__main__":
    import domainbed_domainfusion.register  # noqa: F401

    sys.exit(main())
