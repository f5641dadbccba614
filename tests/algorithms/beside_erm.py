"""An algorithm that an hparam reduces to ERM: trained beside the host's ERM from the same weights, on the same data."""

import torch

from domainbed_domainfusion.hosting import host


def assert_it_is_erm(name: str, **hparams) -> None:
    """Three steps on Debug28's shapes: equal losses and equal weights, bit for bit."""
    trained = []
    for each in ("ERM", name):
        values = {**host.hparams_registry.default_hparams(name, "Debug28"), **hparams}
        torch.manual_seed(0)
        made = host.algorithms.get_algorithm_class(each)((3, 28, 28), 2, 3, values)
        losses = [made.update([(torch.randn(4, 3, 28, 28), torch.randint(2, (4,)))])["loss"] for _ in range(3)]
        trained.append((losses, list(made.network.parameters())))
    (erm, erm_weights), (ours, our_weights) = trained
    assert erm == ours and all(torch.equal(a, b) for a, b in zip(erm_weights, our_weights))
