"""SAM against the two passes of its definition written out in float64."""

import copy

import torch
import torch.nn.functional as F

from domainbed_domainfusion.hosting import host


def test_one_step_is_adam_on_the_gradient_at_the_perturbed_weights():
    hparams = {**host.hparams_registry.default_hparams("SAM", "Debug28"), "rho": 0.2}
    torch.manual_seed(0)
    sam = host.algorithms.SAM((3, 28, 28), 2, 3, hparams).double()
    plain = copy.deepcopy(sam.network)
    minibatches = [(torch.randn(4, 3, 28, 28, dtype=torch.float64), torch.randint(2, (4,))) for _ in range(3)]
    x, y = (torch.cat(parts) for parts in zip(*minibatches))

    loss = F.cross_entropy(plain(x), y)
    loss.backward()
    norm = sum((w.grad**2).sum() for w in plain.parameters()) ** 0.5
    perturbed = copy.deepcopy(plain)
    for moved, weight in zip(perturbed.parameters(), plain.parameters()):
        moved.data += 0.2 * weight.grad / norm
    perturbed.zero_grad()
    F.cross_entropy(perturbed(x), y).backward()
    optimizer = torch.optim.Adam(plain.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"])
    for weight, moved in zip(plain.parameters(), perturbed.parameters()):
        weight.grad = moved.grad
    optimizer.step()

    assert sam.update(minibatches) == {"loss": loss.item()}
    for ours, theirs in zip(sam.network.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_with_a_vanishing_radius_it_is_erm():
    algorithms = {}
    for name in ("ERM", "SAM"):
        hparams = {**host.hparams_registry.default_hparams("SAM", "Debug28"), "rho": 1e-12}
        torch.manual_seed(0)
        algorithms[name] = host.algorithms.get_algorithm_class(name)((3, 28, 28), 2, 3, hparams).double()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        batch = [
            (
                torch.randn(4, 3, 28, 28, generator=generator, dtype=torch.float64),
                torch.randint(2, (4,), generator=generator),
            )
        ]
        losses = [algorithm.update(batch)["loss"] for algorithm in algorithms.values()]
        assert abs(losses[0] - losses[1]) < 1e-9


def test_frozen_parameters_take_no_part():
    """The radius is the norm over the trained parameters. DomainBed's `vit_attn_tune` freezes most of the network."""
    hparams = {**host.hparams_registry.default_hparams("SAM", "Debug28"), "rho": 0.2}
    torch.manual_seed(0)
    sam = host.algorithms.SAM((3, 28, 28), 2, 3, hparams).double()
    frozen = set(sam.featurizer.parameters())
    for weight in frozen:
        weight.requires_grad_(False)
    before = copy.deepcopy(sam.network.state_dict())
    twin = copy.deepcopy(sam.network)  # features are constant here: SAM on the last layer, written out
    x, y = torch.randn(4, 3, 28, 28, dtype=torch.float64), torch.randint(2, (4,))
    sam.update([(x, y)])

    last = twin[1]
    gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), list(last.parameters()))
    norm = sum((g**2).sum() for g in gradients) ** 0.5
    moved = copy.deepcopy(twin)
    for weight, gradient in zip(moved[1].parameters(), gradients):
        weight.data += 0.2 * gradient / norm
    optimizer = torch.optim.Adam(last.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"])
    gradients = torch.autograd.grad(F.cross_entropy(moved(x), y), list(moved[1].parameters()))
    for weight, gradient in zip(last.parameters(), gradients):
        weight.grad = gradient
    optimizer.step()

    for ours, theirs in zip(sam.classifier.parameters(), last.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    names = [name for name, weight in sam.network.named_parameters() if weight in frozen]
    assert len(names) == len(frozen) and len(names) > 0
    assert all(torch.equal(sam.network.state_dict()[name], before[name]) for name in names)
