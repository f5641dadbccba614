"""The generate-dataset against a plain loop over Algorithm 1's lines 1 to 13."""

import json

import pytest
import torch
from PIL import Image

from domainbed_domainfusion import pixels
from domainbed_domainfusion.gallery import Gallery
from domainbed_domainfusion.seeding import seed_of
from domainbed_domainfusion.synthetic import GenerateDataset, Generated


def darken(images, labels, seeds):
    """A stand-in for lines 7 to 12 that shows what it was given: depends on the image, the label and every seed."""
    share = torch.tensor([[seed % 1000 / 1000 for seed in row] for row in seeds]).mean(1)
    made = images * 0.5 + (share - 0.5).view(-1, 1, 1, 1) * 0.3 + labels.view(-1, 1, 1, 1) * 0.05
    return Generated(made.clamp(-1, 1), labels % 3, torch.zeros_like(labels))


@pytest.fixture
def dataset(host_run):
    def make(budget=0, gallery=None, seed=3):
        run = host_run("ERM", test_env=0)
        pixel_range = pixels.PixelRange.of((3, 32, 32), run.dataset)
        return GenerateDataset(run.context.in_splits, 32, pixel_range, seed=seed, budget=budget, candidates=3,
                               gallery=gallery)
    return make


def test_after_k_rounds_it_holds_what_a_plain_loop_gives(dataset):
    store = dataset()
    held = {}
    for split, in_split in enumerate(store.in_splits):  # line 1: a copy of the raw in-splits
        for index in in_split.keys:
            image, label = in_split.source[index]
            held[split, index] = ((image * 255).round().to(torch.uint8), int(label))
    for number in (1, 2, 3):
        for (split, index), (image, label) in held.items():  # lines 5 to 13
            environment = store.in_splits[split].environment
            seeds = [seed_of(3, "candidate", environment, index, number, j) for j in range(3)]
            made = darken(image[None].float() / 127.5 - 1, torch.tensor([label]), [seeds]).images
            held[split, index] = (((made[0] / 2 + 0.5) * 255).round().to(torch.uint8), label)
        store.refresh(step=number, generate=darken, batch_size=5)
    assert store.images.keys() == held.keys() and store.rounds == 3
    for key, (image, label) in held.items():
        assert torch.equal(store.images[key], image) and store.labels[key] == label


def test_the_result_does_not_depend_on_the_batch(dataset):
    stores = [dataset(), dataset()]
    for store, batch_size in zip(stores, (1, 7)):
        store.refresh(0, darken, batch_size)
    assert all(torch.equal(image, stores[1].images[key]) for key, image in stores[0].images.items())


def test_a_budget_is_a_seeded_part_that_every_round_updates(dataset):
    store = dataset(budget=7)  # of in-splits of 17 and 18 images
    assert len(set(store.keys)) == 7 and [sum(key[0] == split for key in store.keys) for split in (0, 1)] == [4, 3]
    assert store.keys == dataset(budget=7).keys != dataset(budget=7, seed=4).keys
    assert set(store.keys) <= set(dataset(budget=0).keys)
    for number in (1, 2):
        before = {key: store.version(key)[0] for key in store.keys}
        assert store.refresh(number, darken, 3) == 7 and store.images.keys() == before.keys()
        assert not any(torch.equal(image, before[key]) for key, image in store.images.items())


def test_minibatches_come_from_every_domain_and_are_seeded_by_the_step(dataset):
    store = dataset(budget=8)
    store.refresh(0, darken, 4)
    before = torch.get_rng_state()
    x, y = store.minibatch(step=5)
    assert torch.equal(torch.get_rng_state(), before), "a raw minibatch would now depend on generation"
    assert x.shape == (8, 3, 32, 32) and y.shape == (8,)
    for i in range(8):
        stored = pixels.to_store(x[i:i + 1] * 2 - 1)[0]
        matches = [key for key, image in store.images.items() if torch.equal(stored, image)]
        assert [key[0] for key in matches] == [i // 4] and store.labels[matches[0]] == y[i]
    other = dataset(budget=8)
    other.refresh(0, darken, 3)
    assert torch.equal(other.minibatch(step=5)[0], x)
    assert not torch.equal(other.minibatch(step=6)[0], x)


def test_only_in_splits_are_read(dataset, host_run):
    store = dataset()
    allowed = {(split, key) for split, in_split in enumerate(store.in_splits) for key in in_split.keys}
    assert set(store.keys) == allowed and len(store.keys) == 35


def test_the_gallery_holds_the_versions_and_counts_the_choices(dataset, tmp_path):
    store = dataset(budget=8, gallery=Gallery(str(tmp_path), 2, ["zero", "one", "two", "three"]))
    originals = {key: store.version(key)[0] for key in store.keys}
    for number in (1, 2):
        store.refresh(step=10 * number, generate=darken, batch_size=4)
    index = json.loads((tmp_path / "generated" / "gallery.json").read_text())
    assert len(index["images"]) == 4 and sum(index["choices"]["content"]) == 16
    for entry in index["images"]:
        assert [(v["round"], v["step"]) for v in entry["versions"]] == [(0, 0), (1, 10), (2, 20)]
        environment, number = entry["key"].removeprefix("env").split("-")
        key = (int(environment) - 1, int(number))
        for version, expected in ((0, originals[key]), (2, store.images[key])):
            with Image.open(tmp_path / "generated" / entry["versions"][version]["file"]) as image:
                assert torch.equal(pixels.stored_version(image, 32), expected)
    mixed = index["choices"]["mixed"]
    content_zero = index["choices"]["content"][0] / 16
    assert mixed == pytest.approx(1 - content_zero)  # darken always takes style 0
