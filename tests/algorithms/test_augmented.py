"""RandAugment and AugMix against torchvision's own transform of each image, called under that image's seed."""

import pytest
import torch
from torchvision import transforms

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.seeding import seed_of

THEIRS = {"RandAugment": transforms.RandAugment(3, 12), "AugMix": transforms.AugMix(5, 2)}
OURS = {
    "RandAugment": {"randaugment_operations": 3, "randaugment_magnitude": 12},
    "AugMix": {"augmix_severity": 5, "augmix_width": 2},
}


@pytest.mark.parametrize("name", THEIRS)
def test_each_image_is_torchvisions(host_run, name):
    r = host_run(name, **OURS[name])
    algorithm = r.algorithm
    algorithm.step = 7
    x = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made = algorithm.augmented(x / 255, domain=1)
    changed = 0
    for i, image in enumerate(x):
        torch.manual_seed(seed_of(r.context.seed, "augmentation", 7, 1, i))
        expected = THEIRS[name](image)
        changed += not torch.equal(expected, image)
        torch.testing.assert_close(made[i], expected / 255, atol=1e-6, rtol=0)
    assert changed >= 3


@pytest.mark.parametrize("name", THEIRS)
def test_an_update_is_erms_on_the_augmented_minibatches(host_run, name):
    """Bit for bit, and torch's global generator does not move."""
    r = host_run(name, **OURS[name])
    batches = [next(r.minibatches) for _ in range(3)]
    augmented = []
    for step, batch in enumerate(batches):
        r.algorithm.step = step
        augmented.append([(r.algorithm.augmented(x, domain), y) for domain, (x, y) in enumerate(batch)])
    r.algorithm.step = 0
    torch.manual_seed(123)  # a state that no augmentation leaves behind
    state = torch.get_rng_state()
    losses = [r.algorithm.update(batch)["loss"] for batch in batches]
    assert torch.equal(torch.get_rng_state(), state)

    erm = host_run("ERM").algorithm
    assert [erm.update(batch)["loss"] for batch in augmented] == losses
    for a, b in zip(erm.network.parameters(), r.algorithm.network.parameters()):
        assert torch.equal(a, b)


def test_a_value_out_of_range_is_one_sentence(host_run):
    with pytest.raises(InputError, match="randaugment_magnitude is 31, but must be a whole number from 0 to 30"):
        host_run("RandAugment", randaugment_magnitude=31)
