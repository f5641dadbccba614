"""TRAM against the paper's Algorithms 1 and 2 in float64, with its distances and Fisher information image by image."""

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.seeding import seed_of

from . import two_layers as net
from .beside_erm import assert_it_is_erm

NOISE, RADIUS, DAMPING = 0.5, 0.3, 2.0
HPARAMS = {"tram_noise": NOISE, "tram_fisher_radius": RADIUS, "tram_fisher_damping": DAMPING}


def divergence(prior, current) -> float:
    """The mean over images of Σ_c p_c · log(p_c / q_c)."""
    total = 0.0
    for p, q in zip(prior.tolist(), current.tolist()):
        total += sum(a * torch.log(torch.tensor(a / b, dtype=torch.float64)).item() for a, b in zip(p, q))
    return total / len(prior)


def noised(x, step):
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed_of(0, "TRAM noise", step)), dtype=x.dtype)
    return x + NOISE * z


def displacement(kind, theta, previous, initial, x, y, step):
    """ε and the size of the trust region: Algorithm 1, lines 3 and 4, or Algorithm 2, lines 3 to 5."""
    g = net.gradient(theta, x, y)
    if kind == "fisher":
        at_noise = noised(x, step)
        rows = [net.gradient(theta, at_noise[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        fisher = (sum(rows) / len(rows)) ** 2
        along = g / (1 + DAMPING * fisher)
        return RADIUS * along / (g @ along) ** 0.5, RADIUS
    if kind == "noised_input":
        prior = net.probabilities(theta, noised(x, step))
    else:
        prior = net.probabilities(previous if kind == "previous" else initial, x)
    d = divergence(prior, net.probabilities(theta, x))
    return d * theta**2 * g / ((theta * g) ** 2).sum() ** 0.5, d


@pytest.mark.parametrize("kind", ["previous", "initial", "noised_input", "fisher"])
def test_its_steps_are_the_papers(kind):
    ours = net.algorithm("TRAM", tram_distance=kind, **HPARAMS, lr=0.1)
    theta, adam = net.flat(ours), net.Adam(lr=0.1)
    initial = previous = theta
    sizes = []
    for step, batch in enumerate(net.minibatches(5)):
        x, y = net.joined(batch)
        epsilon, size = displacement(kind, theta, previous, initial, x, y, step)
        h = net.gradient(theta + epsilon, x, y)
        before = net.loss(theta, x, y).item()
        previous, theta = theta, adam.step(theta, h)
        values = ours.update(batch)
        assert abs(values["loss"] - before) < 1e-10 and abs(values["trust_region"] - size) < 1e-10
        sizes.append(values["trust_region"])
    torch.testing.assert_close(net.flat(ours), theta, rtol=0, atol=1e-10)
    assert all(size > 1e-4 for size in sizes[1:])
    assert (sizes[0] == 0) is (kind in ("previous", "initial"))


@pytest.mark.parametrize("region", [{"tram_distance": "noised_input", "tram_noise": 0.0},
                                    {"tram_distance": "fisher", "tram_fisher_radius": 0.0}])  # fmt: skip
def test_without_a_region_it_is_erm_bit_for_bit(region):
    assert_it_is_erm("TRAM", **region)


def test_an_unknown_distance_is_refused():
    with pytest.raises(InputError, match="The hparam tram_distance is 'last', but must be one of previous, initial, "):
        net.algorithm("TRAM", tram_distance="last")
