"""The generate-dataset against a plain loop over Algorithm 1's lines 1 to 13."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion import pixels
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated import dataset as dataset_module
from domainbed_domainfusion.generated.dataset import GenerateDataset, round_begins
from domainbed_domainfusion.generated.gallery import Gallery
from domainbed_domainfusion.generated.generation import Generated
from domainbed_domainfusion.generated.identity import sources_of
from domainbed_domainfusion.generated.saved_rounds import SavedRounds, SavedRun, read_part
from domainbed_domainfusion.seeding import seed_of


def current_images(store: GenerateDataset) -> dict:
    """key → its current image."""
    return {key: store.version(row)[0] for row, key in enumerate(store.keys)}


def darken(images, labels, seeds, shared=False):
    """A stand-in for lines 7 to 12. Its result depends on the image, the label and every seed."""
    share = torch.tensor([[seed % 1000 / 1000 for seed in row] for row in seeds]).mean(1)
    made = images * 0.5 + (share - 0.5).view(-1, 1, 1, 1) * 0.3 + labels.view(-1, 1, 1, 1) * 0.05
    return Generated(made.clamp(-1, 1), labels % 3, torch.zeros_like(labels))


@pytest.fixture
def dataset(host_run):
    def make(budget=0, gallery=None, seed=3):
        run = host_run("ERM", test_env=0)
        pixel_range = pixels.PixelRange.of((3, 32, 32), run.dataset)
        return GenerateDataset(
            run.context.in_splits, 32, pixel_range, seed=seed, budget=budget, candidates=3, gallery=gallery
        )

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
    assert set(store.keys) == held.keys() and store.rounds == 3
    for row, key in enumerate(store.keys):
        image, label = store.version(row)
        assert torch.equal(image, held[key][0]) and label == held[key][1]


def test_the_result_does_not_depend_on_the_batch(dataset):
    stores = [dataset(), dataset()]
    for store, batch_size in zip(stores, (1, 7)):
        store.refresh(0, darken, batch_size)
    assert same_images(*stores)


def test_a_budget_is_a_seeded_part_that_every_round_updates(dataset):
    store = dataset(budget=7)  # of in-splits of 17 and 18 images
    assert len(set(store.keys)) == 7 and [sum(key[0] == split for key in store.keys) for split in (0, 1)] == [4, 3]
    assert store.keys == dataset(budget=7).keys != dataset(budget=7, seed=4).keys
    assert set(store.keys) <= set(dataset(budget=0).keys)
    for number in (1, 2):
        before = current_images(store)
        assert store.refresh(number, darken, 3) == 7
        assert not any(torch.equal(image, before[key]) for key, image in current_images(store).items())


def test_minibatches_come_from_every_domain_and_are_seeded_by_the_step(dataset):
    store = dataset(budget=8)
    store.refresh(0, darken, 4)
    before = torch.get_rng_state()
    x, y, rows = store.minibatch(step=5)
    assert torch.equal(torch.get_rng_state(), before), "a raw minibatch would now depend on generation"
    assert x.shape == (8, 3, 32, 32) and y.shape == (8,)
    for i in range(8):
        stored = pixels.to_store(x[i : i + 1] * 2 - 1)[0]
        matches = [row for row in range(len(store.keys)) if torch.equal(stored, store.version(row)[0])]
        assert matches == [rows[i]] and store.keys[rows[i]][0] == i // 4 and store.labels[rows[i]] == y[i]
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
    originals = current_images(store)
    for number in (1, 2):
        store.refresh(step=10 * number, generate=darken, batch_size=4)
    index = json.loads((tmp_path / "generated" / "gallery.json").read_text())
    assert len(index["images"]) == 4 and sum(index["choices"]["content"]) == 16
    for entry in index["images"]:
        assert [(v["round"], v["step"]) for v in entry["versions"]] == [(0, 0), (1, 10), (2, 20)]
        environment, number = entry["key"].removeprefix("env").split("-")
        key = (int(environment) - 1, int(number))
        for version, expected in ((0, originals[key]), (2, current_images(store)[key])):
            with Image.open(tmp_path / "generated" / entry["versions"][version]["file"]) as image:
                assert torch.equal(pixels.stored_version(image, 32), expected)
    mixed = index["choices"]["mixed"]
    content_zero = index["choices"]["content"][0] / 16
    assert mixed == pytest.approx(1 - content_zero)  # darken always takes style 0


def test_the_gallery_asks_for_the_confidence_of_what_it_keeps_only(dataset, tmp_path):
    asked = []

    def confidence(x, y):  # a stand-in that depends on both
        asked.append(len(x))
        return (x.mean((1, 2, 3)) + 1 + y) / 8

    store = dataset(budget=8, gallery=Gallery(str(tmp_path), 1, ["zero", "one", "two", "three"], confidence))
    store.refresh(step=0, generate=darken, batch_size=4)
    index = json.loads((tmp_path / "generated" / "gallery.json").read_text())
    assert sum(asked) == 4  # two domains, an original and a version of each
    for entry in index["images"]:
        for version in entry["versions"]:
            with Image.open(tmp_path / "generated" / version["file"]) as image:
                mean = np.asarray(image).mean() / 127.5
            assert version["confidence"] == pytest.approx((mean + entry["label"]) / 8, abs=1e-5)


@pytest.fixture
def saving(dataset, tmp_path, monkeypatch):
    """Makes generate-datasets that save their rounds to tmp_path, in parts of at most 16 images."""
    monkeypatch.setattr(dataset_module, "IMAGES_PER_PART", 16)

    def make(identity=None, keep="all", classifier="as it was", **options):
        identity = identity or {"hparams": {"lr": 0.1}}
        store = dataset(**options)
        sources = sources_of(store.in_splits, store.keys, ["zero", "one", "two", "three"], ["a photo of a zero"] * 4)
        store.saved = SavedRounds(str(tmp_path), identity, sources, keep, lambda: classifier)
        return store

    return make


def must_not_generate(images, labels, seeds, shared):
    raise AssertionError("generated again")


def same_images(a, b) -> bool:
    a, b = current_images(a), current_images(b)
    return a.keys() == b.keys() and all(torch.equal(image, b[key]) for key, image in a.items())


def test_saved_rounds_are_taken_in_place_of_generating_them(saving, dataset, tmp_path, capsys):
    plain, first, again = dataset(), saving(), saving()
    for number in (1, 2):
        plain.refresh(number, darken, 5)
        first.refresh(number, darken, 5)
    for number in (1, 2):
        assert again.refresh(number, must_not_generate, 5) == 35
    assert same_images(plain, first) and same_images(first, again) and capsys.readouterr().out == ""
    assert torch.equal(first.minibatch(7)[0], again.minibatch(7)[0])
    assert again.seconds_saved == pytest.approx(
        sum(float(read_part(path)[1]["seconds"]) for path in (tmp_path / "generated/rounds/round-002").glob("part-*"))
    )
    assert first.seconds_saved == 0 < again.seconds_saved


def test_the_gallery_of_a_resumed_run_is_the_same(saving, tmp_path):
    texts = []
    for generate in (darken, must_not_generate):
        store = saving(gallery=Gallery(str(tmp_path), 2, ["zero", "one", "two", "three"]))
        store.refresh(3, generate, 5)
        texts.append((tmp_path / "generated" / "gallery.json").read_text())
    assert texts[0] == texts[1]


def test_a_run_stopped_inside_a_round_goes_on_there(saving, dataset):
    calls = []

    def stops(images, labels, seeds, shared):
        calls.append(len(images))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return darken(images, labels, seeds)

    with pytest.raises(KeyboardInterrupt):
        saving().refresh(4, stops, 5)
    plain, again = dataset(), saving()
    calls.clear()
    again.refresh(4, lambda *batch: calls.append(len(batch[0])) or darken(*batch), 5)
    plain.refresh(4, darken, 5)
    assert calls == [5, 5, 5, 5] and same_images(plain, again)  # 35 images, and the first part of 15 was saved


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"",
        lambda data: b"no safetensors",
    ],
)
def test_a_damaged_part_is_generated_again_with_one_line(saving, tmp_path, capsys, damage):
    first = saving()
    first.refresh(0, darken, 5)
    path = tmp_path / "generated" / "rounds" / "round-001" / "part-001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again, made = saving(), []
    again.refresh(0, lambda *batch: made.append(len(batch[0])) or darken(*batch), 5)
    assert sum(made) == 15 and same_images(first, again)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and str(path) in lines[0] and lines[0].endswith("its images are generated again.")
    assert read_part(path)[0]["images"].shape == (15, 3, 32, 32)


def test_what_another_run_saved_is_never_used_and_not_lost(saving, tmp_path, capsys):
    first = saving()
    first.refresh(0, darken, 5)
    rounds = tmp_path / "generated" / "rounds"
    other = saving(identity={"hparams": {"lr": 0.2}})
    assert capsys.readouterr().out == (
        f"The generated images in {rounds} are another run's (lr: 0.1 there, 0.2 here): they are not used, and lie in "
        "rounds-set-aside-1 now.\n"
    )
    with pytest.raises(AssertionError, match="generated again"):
        other.refresh(0, must_not_generate, 5)
    assert len(list((tmp_path / "generated" / "rounds-set-aside-1").rglob("part-*"))) == 3
    (rounds / "run.json").write_text("{")
    saving(identity={"hparams": {"lr": 0.2}})
    assert "have no readable run.json" in capsys.readouterr().out


def test_a_part_of_other_pixels_or_of_another_step_is_generated_again(saving, dataset, capsys):
    saving().refresh(0, darken, 5)
    with pytest.raises(AssertionError, match="generated again"):
        saving().refresh(1, must_not_generate, 5)
    assert "at another step" in capsys.readouterr().out
    changed = saving()
    image, _ = changed.in_splits[0].source[changed.keys[0][1]]
    image += 0.1  # in place, as if the data on disk had changed
    with pytest.raises(AssertionError, match="generated again"):
        changed.refresh(0, must_not_generate, 5)
    assert "made from other images" in capsys.readouterr().out


def test_another_classifier_is_said_once(saving, capsys):
    saving().refresh(5, darken, 5)
    saving(classifier="a bit off").refresh(5, must_not_generate, 5)
    assert capsys.readouterr().out.count("At step 5 the classifier is not bit for bit the one") == 1


def test_last_keeps_one_round(saving, tmp_path):
    store = saving(keep="last")
    for number in (1, 2, 3):
        store.refresh(number, darken, 5)
    assert [path.name for path in (tmp_path / "generated" / "rounds").glob("round-*")] == ["round-003"]
    run = SavedRun.open(tmp_path)
    assert run.rounds == {3: {"round": 3, "step": 3, "parts": 3, "images": 35}}
    held = torch.cat([part["images"] for part in run.parts(3)])
    assert torch.equal(held, torch.stack(list(current_images(store).values())))


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(saving, dataset, tmp_path, capsys, monkeypatch):
    plain, store = dataset(), saving()
    store.refresh(1, darken, 5)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("domainbed_domainfusion.files.os.replace", full)
        store.refresh(2, darken, 5)
    store.refresh(3, darken, 5)
    for number in (1, 2, 3):
        plain.refresh(number, darken, 5)
    assert same_images(plain, store)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "No space left on device" in out
    assert out.endswith("The run goes on; what it generates from here on is not saved.\n")
    assert list(SavedRun.open(tmp_path).rounds) == [1] and not list(tmp_path.rglob(".*"))


def test_too_small_a_disk_is_found_before_the_first_round(saving):
    saved = saving().saved
    saved.check_space(rounds=3, images=100, size=32)
    with pytest.raises(InputError, match=r"\(24 rounds of 6000000\) takes 44246.0 GB more, but .* or \"none\"."):
        saved.check_space(rounds=24, images=6_000_000, size=320)


def test_images_in_another_memory_format_are_saved(saving):
    def channels_last(*batch):
        made = darken(*batch)
        return Generated(made.images.contiguous(memory_format=torch.channels_last), made.content, made.style)

    first, again = saving(budget=5), saving(budget=5)
    first.refresh(0, channels_last, 8)
    again.refresh(0, must_not_generate, 8)
    assert same_images(first, again)


def test_a_folder_without_saved_rounds_is_refused(saving, tmp_path):
    with pytest.raises(InputError, match="holds no saved generated images"):
        SavedRun.open(tmp_path)
    store = saving()
    with pytest.raises(InputError, match="holds no whole round yet"):
        SavedRun.open(tmp_path)
    store.refresh(0, darken, 5)
    (tmp_path / "generated" / "rounds" / "round-001" / "part-002.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="part-002.safetensors is missing, damaged or only partly there: delete it"):
        list(SavedRun.open(tmp_path).parts(1))


def test_balanced_minibatches_draw_every_class_equally_often(dataset):
    """Class 3 is made rare among 35 images. With the host's weights every class of a domain is drawn equally often."""
    store = dataset()
    balanced = GenerateDataset(store.in_splits, 32, store.pixel_range, seed=3, budget=0, candidates=3, balanced=True)
    for each in (store, balanced):
        for split in each.in_splits:
            _, labels = split.source.tensors
            labels[: len(labels) - 2] %= 3  # class 3 only among the last two
        each.refresh(0, darken, 16)
    rare = sum(int(label == 3) for label in balanced.labels)
    assert 0 < rare <= 4
    share = {}
    for name, each in (("uniform", store), ("balanced", balanced)):
        drawn = torch.cat([each.minibatch(step)[1] for step in range(200)])
        share[name] = (drawn == 3).float().mean().item()
    classes = [len({int(balanced.labels[row]) for row in rows}) for rows in balanced.rows]
    expected = sum(1 / n for n, rows in zip(classes, balanced.rows) if 3 in balanced.labels[list(rows)]) / 2
    assert share["balanced"] == pytest.approx(expected, abs=0.04)
    assert share["uniform"] == pytest.approx(rare / 35, abs=0.04)


def test_a_round_begins_wherever_an_epoch_with_its_number_does():
    """Compared with a loop over epochs: epoch i begins at the first step at or after i - 1 epoch lengths."""
    for length in (0.3, 0.5, 0.9, 1.0, 1.7, 3.2, 4.0):
        for interval in (1, 2, 3, 5):
            begins = {math.ceil((i - 1) * length - 1e-9) for i in range(1, 200) if i % interval == 0}
            steps = range(int(190 * length))
            found = {
                step
                for step in steps
                if round_begins(step, length, {"updating": True, "generation_interval": interval})
            }
            assert found == {step for step in begins if step in steps}, (length, interval)
