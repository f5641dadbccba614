"""SAGM against its objective's gradient written out in float64, and against ERM where both radii vanish."""

import torch

from domainbed_domainfusion.hosting import host

from . import two_layers as net


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
    trained = []
    for name in ("ERM", "SAGM"):
        values = {**host.hparams_registry.default_hparams("SAGM", "Debug28"), "rho": 0.0, "sagm_alpha": 0.0}
        torch.manual_seed(0)
        made = host.algorithms.get_algorithm_class(name)((3, 28, 28), 2, 3, values)
        losses = [made.update([(torch.randn(4, 3, 28, 28), torch.randint(2, (4,)))])["loss"] for _ in range(3)]
        trained.append((losses, list(made.network.parameters())))
    (erm, erm_weights), (ours, our_weights) = trained
    assert erm == ours and all(torch.equal(a, b) for a, b in zip(erm_weights, our_weights))
