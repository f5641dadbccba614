"""`benchmarks.devices`: both sides make every image of a round, and their images are compared."""

import torch

from benchmarks import devices
from domainbed_domainfusion.hosting.hparams import added_defaults

HPARAMS = {**added_defaults("DomainFusion", "DigitStyles"), "denoising_steps": 1, "generation_batch": 4}


class Pool:
    """Stands in for processes: it makes nothing, and keeps what it was asked for."""

    made: dict[int, list] = {}

    def __init__(self, sampler, names, hparams, classes):
        self.names = names

    def ahead(self, batches):
        self.coming = list(batches)

    def sample(self, images, labels, seeds):
        assert torch.equal(images, self.coming.pop(0)[0])
        self.made.setdefault(len(self.names), []).append((labels.tolist(), seeds))
        return type("Made", (), {"images": images})


def test_one_and_several_are_asked_for_the_same_images(monkeypatch):
    monkeypatch.setattr(devices, "DevicePool", Pool)
    threads = torch.get_num_threads()
    try:
        results = devices.run(HPARAMS, ["cpu", "cpu"], images=10, repeats=2)
    finally:
        torch.set_num_threads(threads)
    rounds = 1 + 1 + 2  # compared, warm-up, repeats
    assert {number: len(made) for number, made in Pool.made.items()} == {1: 3 * rounds, 2: 3 * rounds}
    assert Pool.made[1] == Pool.made[2]
    labels = [label for batch, _ in Pool.made[1][:3] for label in batch]
    assert labels == list(range(10))
    assert results.notes == ["The images of both are equal, bit for bit."]
    assert {name: len(seconds) for name, seconds in results.seconds.items()} == {"one device": 2, "all devices": 2}
    assert list(results.ratios) == ["speed_up"]
