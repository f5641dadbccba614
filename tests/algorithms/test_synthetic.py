"""Synthetic: ERM with text-to-image samples. They depend on labels and seeds alone; the rest is DomainFusion."""

import pytest
import torch
import torch.nn.functional as F

from ..conftest import TinyDigits

FAST = {"denoising_steps": 3, "generation_interval": 1, "gallery": 0}


class OtherPixels(TinyDigits):
    """The same labels, other images."""

    def __init__(self, *args):
        super().__init__(*args)
        for environment in self.datasets:
            environment.tensors = (1 - environment.tensors[0], environment.tensors[1])


def generated(r):
    r.update(5)  # two rounds of four steps an epoch
    dataset = r.algorithm.generate_dataset
    assert dataset.rounds == 2
    return dataset.versions(range(len(dataset.keys)))


def test_a_sample_is_of_its_images_class_and_knows_nothing_else_of_it(host_run, tiny_ldm):
    images, labels = generated(host_run("Synthetic", ldm=tiny_ldm, **FAST))
    others, same_labels = generated(host_run("Synthetic", dataset=OtherPixels, ldm=tiny_ldm, **FAST))
    assert torch.equal(images, others) and torch.equal(labels, same_labels)
    assert len(images.unique(dim=0)) == len(images)
    of_images, _ = generated(host_run("DomainFusion", ldm=tiny_ldm, lambda2=0.0, **FAST))
    of_others, _ = generated(host_run("DomainFusion", dataset=OtherPixels, ldm=tiny_ldm, lambda2=0.0, **FAST))
    assert not torch.equal(of_images, of_others)


def test_its_loss_is_erms_on_both_minibatches(host_run, tiny_ldm):
    r = host_run("Synthetic", ldm=tiny_ldm, **FAST)
    r.update(1)
    ours, batch = r.algorithm, next(r.minibatches)
    x, y = (torch.cat(parts) for parts in zip(*batch))
    x_gen, y_gen, _ = ours.generate_dataset.minibatch(ours.step)
    with torch.no_grad():
        logits = ours.predict(torch.cat([x, x_gen]))
        expected = F.cross_entropy(logits[: len(x)], y) + 0.5 * F.cross_entropy(logits[len(x) :], y_gen)
    values = ours.update(batch)
    assert values["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert values["ld_loss"] == 0 and values["ld_gradient_ratio"] == 0
