"""SAGM against its objective's gradient written out in float64, and against ERM where both radii vanish."""

import torch

from . import two_layers as net
from .beside_erm import assert_it_is_erm


def test_its_steps_are_adam_on_both_losses_gradients():
    """L(θ) + L_p(θ − α∇L), halved: the second gradient is that of L at θ + ρ∇L/‖∇L‖ − α∇L."""
    ours = net.algorithm("SAGM", rho=0.3, sagm_alpha=0.4)
    theta, adam = net.flat(ours), net.Adam()
    for batch in net.minibatches(5):
        x, y = net.joined(batch)
        g = net.gradient(theta, x, y)
        there = theta - 0.4 * g + 0.3 * g / (g**2).sum().sqrt()
        h = net.gradient(there, x, y)
        expected = {"loss": net.loss(theta, x, y).item(), "perturbed_loss": net.loss(there, x, y).item()}
        theta = adam.step(theta, (g + h) / 2)
        values = ours.update(batch)
        assert values.keys() == expected.keys()
        assert all(abs(values[name] - expected[name]) < 1e-12 for name in values)
    torch.testing.assert_close(net.flat(ours), theta, rtol=0, atol=1e-10)


def test_with_both_radii_zero_it_is_erm_bit_for_bit():
    assert_it_is_erm("SAGM", rho=0.0, sagm_alpha=0.0)
