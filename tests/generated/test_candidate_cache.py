"""Shared first-round candidates: compared with the sampler without a cache, and by counting the U-Net's rows."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from domainbed_domainfusion import pixels
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.digests import tensors_digest
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated.candidate_cache import CandidateCache, shared_seeds
from domainbed_domainfusion.generated.dataset import candidate_seeds
from domainbed_domainfusion.generated.identity import candidate_identity, run_identity
from domainbed_domainfusion.generated.saved_rounds import read_part
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.runs import generate

SETTINGS = {
    "steps": 3,
    "strength": 0.8,
    "guidance_scale": 7.5,
    "scheduler": "ddim",
    "timestep_spacing": "trailing",
    "guidance_interval": 1.0,
}
NAMES = ["zero", "one", "two", "three"]
LABELS = torch.tensor([2, 0, 3])


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """The number of rows of every U-Net call, in order."""
    seen, predict = [], LatentDiffusion.predict
    monkeypatch.setattr(
        LatentDiffusion,
        "predict",
        lambda self, latents, *rest: seen.append(len(latents)) or predict(self, latents, *rest),
    )
    return seen


@pytest.fixture
def images() -> torch.Tensor:
    """Images of 256 levels in [-1, 1], as the store gives them."""
    return pixels.from_store(torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def cache(tiny_ldm, tmp_path):
    def make(folder=tmp_path / "cache", sha="1", template="a photo of a {}", dtype="float32", **settings):
        ldm = LatentDiffusion.load(tiny_ldm, device="cpu", dtype=dtype)
        settings = {**SETTINGS, **settings}
        sampler = CandidateSampler(ldm, Prompts(ldm, NAMES, template), **settings)
        model = {"ldm": tiny_ldm, "ldm_revision": None, "ldm_decoder": None, "image_size": 32}
        hparams = {**model, **settings, "denoising_steps": settings["steps"]}
        return CandidateCache(str(folder), sampler, {**candidate_identity(hparams, ldm), "ldm": sha})

    return make


def seeds_of(images, labels, candidates, template="a photo of a {}"):
    return [
        shared_seeds(image, template.format(NAMES[label]), candidates)
        for image, label in zip(pixels.to_store(images), labels)
    ]


def test_a_hit_is_what_the_sampler_makes(cache, images, rows):
    seeds = seeds_of(images, LABELS, 3)
    shared = cache()
    expected = shared.sampler.sample(images, LABELS, seeds)
    made = shared.sample(images, LABELS, seeds)
    assert torch.equal(made.latents, expected.latents) and torch.equal(made.images, expected.images)
    rows.clear()
    found = cache().sample(images, LABELS, seeds)
    assert rows == [] and torch.equal(found.latents, expected.latents) and torch.equal(found.images, expected.images)
    assert len(list(shared.folder.rglob("*.safetensors"))) == 9


def test_five_candidates_after_three_cost_two(cache, images, rows):
    cache().sample(images, LABELS, seeds_of(images, LABELS, 3))
    three, rows[:] = list(rows), []
    five = cache().sample(images, LABELS, seeds_of(images, LABELS, 5))
    assert three == [2 * 9] * 2 and rows == [2 * 6] * 2  # guided, 2 of 3 steps at strength 0.8
    expected = cache().sampler.sample(images, LABELS, seeds_of(images, LABELS, 5))
    torch.testing.assert_close(five.images, expected.images, rtol=0, atol=1e-4)


def test_some_images_missing_and_another_order(cache, images, rows):
    """Cached: three candidates of image 1, one of image 0, none of image 2. Five are generated, each in its place."""
    one = slice(1, 2)
    cache().sample(images[one], LABELS[one], seeds_of(images[one], LABELS[one], 3))
    cache().sample(images[:1], LABELS[:1], seeds_of(images[:1], LABELS[:1], 1))
    rows.clear()
    order = torch.tensor([2, 1, 0])
    arguments = images[order], LABELS[order], seeds_of(images[order], LABELS[order], 3)
    made = cache().sample(*arguments)
    assert rows == [2 * 5] * 2
    torch.testing.assert_close(made.images, cache().sampler.sample(*arguments).images, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "2"},
        {"dtype": "bfloat16"},
        {"template": "a sketch of a {}"},
        {"steps": 4},
        {"strength": 0.7},
        {"guidance_scale": 7.0},
        {"guidance_interval": 0.5},
        {"scheduler": "dpmsolver++"},
        {"timestep_spacing": "leading"},
    ],
    ids=str,
)
def test_another_setting_finds_nothing(cache, images, rows, change):
    cache().sample(images, LABELS, seeds_of(images, LABELS, 2))
    rows.clear()
    other = cache(**change)
    other.sample(images, LABELS, seeds_of(images, LABELS, 2))  # the same seeds, also with another template
    assert rows and len(list(other.folder.rglob("*.safetensors"))) == 12


def test_another_image_label_size_or_seed_finds_nothing(cache, images, rows):
    seeds = seeds_of(images, LABELS, 2)
    cache().sample(images, LABELS, seeds)
    altered = images.clone()
    altered[:, 0, 0, 0] = pixels.from_store(255 - pixels.to_store(images[:, 0, 0, 0]))
    larger = torch.nn.functional.interpolate(images, scale_factor=2)
    for arguments in (
        (altered, LABELS, seeds),
        (images, LABELS - 3, seeds),
        (larger, LABELS, seeds),
        (images, LABELS, [[seed + 1 for seed in row] for row in seeds]),
    ):
        rows.clear()
        labels = arguments[1] % 4
        cache().sample(arguments[0], labels, arguments[2])
        assert [count for count in rows if count % 12 == 0] == rows and rows  # all six of them


def test_seeds_are_the_images_and_begin_alike():
    image = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    five = shared_seeds(image, "a dog", 5)
    assert len(set(five)) == 5 and shared_seeds(image, "a dog", 3) == five[:3]
    others = [
        shared_seeds(image + 1, "a dog", 5),
        shared_seeds(image.view(3, 1, 4), "a dog", 5),
        shared_seeds(image, "a cat", 5),
    ]
    assert not set(five) & {seed for other in others for seed in other}


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_entry_is_made_again_with_one_line(cache, images, rows, capsys, damage):
    arguments = images, LABELS, seeds_of(images, LABELS, 2)
    expected = cache().sample(*arguments)
    first, second = sorted(cache().folder.rglob("*.safetensors"))[:2]
    content = first.read_bytes()
    first.write_bytes({"cut": content[:-5], "empty": b"", "other": content[:-1] + bytes([content[-1] ^ 1])}[damage])
    rows.clear()
    made = cache().sample(*arguments)
    assert rows == [2] * 2 and capsys.readouterr().out == (f"{first} is damaged: its candidate is generated again.\n")
    torch.testing.assert_close(made.images, expected.images, rtol=0, atol=1e-4)
    rows.clear()
    cache().sample(*arguments)
    assert rows == [] and capsys.readouterr().out == ""


def test_jobs_that_write_at_once_leave_whole_entries(cache, images, rows):
    arguments = images, LABELS, seeds_of(images, LABELS, 2)
    with ThreadPoolExecutor(4) as jobs:
        made = [job.result() for job in [jobs.submit(cache().sample, *arguments) for _ in range(4)]]
    files = [path for path in cache().folder.rglob("*") if path.is_file()]
    assert len(files) == 6 and {path.suffix for path in files} == {".safetensors"}
    rows.clear()
    found = cache().sample(*arguments)
    assert rows == []
    for other in made:
        torch.testing.assert_close(other.images, found.images, rtol=0, atol=1e-4)


def test_a_full_disk_is_said_once_and_the_run_goes_on(cache, images, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    arguments = images, LABELS, seeds_of(images, LABELS, 2)
    shared = cache()
    monkeypatch.setattr(os, "replace", full)
    made = shared.sample(*arguments)
    shared.sample(*arguments)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "No space left on device" in said
    assert said.endswith("The run goes on; the candidates that it makes from here on are not shared.\n")
    assert torch.equal(made.images, shared.sampler.sample(*arguments).images)
    assert not [path for path in shared.folder.rglob("*") if path.is_file()]


def test_a_folder_that_is_a_file(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="The hparam candidate_cache names .*file, which cannot be made or is no fold"):
        cache(tmp_path / "file")


@pytest.fixture
def run(host_run, tiny_ldm, monkeypatch):
    """A run with a given seed. LD is off, so every U-Net call belongs to generation."""

    def make(seed=0, test_env=0, **hparams):
        monkeypatch.setattr(context.TrainingContext, "seed", seed)
        return host_run(
            "DomainFusion",
            test_env,
            **{
                "ldm": tiny_ldm,
                "denoising_steps": 3,
                "generation_interval": 1,
                "gallery": 0,
                "lambda2": 0.0,
                **hparams,
            },
        )

    return make


@pytest.fixture
def sampled(monkeypatch):
    """The latents of every decoded batch of candidates."""
    seen, decode = [], CandidateSampler.decode
    monkeypatch.setattr(CandidateSampler, "decode", lambda self, latents: seen.append(latents) or decode(self, latents))
    return seen


def test_a_second_run_generates_nothing_in_its_first_round(run, tmp_path, rows, sampled):
    """With another run seed and another θ, the first round has the same candidates and calls no U-Net.

    The second round generates: it depends on θ.
    """
    first = run(seed=1, candidate_cache=str(tmp_path))
    first.update(5)
    assert first.algorithm.generate_dataset.rounds == 2 and sum(rows) == 2 * 35 * 3 * 2 * 2
    one, rows[:] = list(sampled), []
    sampled.clear()
    second = run(seed=2, candidate_cache=str(tmp_path), lr=5e-3)
    second.update(1)
    assert rows == []
    # Each run orders its generate-dataset by its own seed. So the candidates are compared as sets.
    together = [
        {tuple(latents.flatten().tolist()) for latents in torch.cat(part).flatten(0, 1)}
        for part in (one[: len(sampled)], sampled)
    ]
    assert together[0] == together[1] and len(together[0]) == 35 * 3
    second.update(4)
    assert sum(rows) == 35 * 3 * 2 * 2  # rounds after the first start from what θ chose
    assert len(list(tmp_path.rglob("*.safetensors"))) == 35 * 3


def test_null_is_a_run_without_it(run, rows, sampled, tmp_path):
    """The seeds follow from the run's seed, as in the plain loop of test_dataset.py, and nothing is written."""
    r = run(seed=3)
    assert r.hparams["candidate_cache"] is None
    r.update(1)
    store = r.algorithm.generate_dataset
    keys, batch = store.keys, r.hparams["generation_batch"]
    seeds = [candidate_seeds(3, store.in_splits[split].environment, index, 1, 3) for split, index in keys]
    raw = [store.in_splits[split].source[index] for split, index in keys]
    sampler = r.algorithm.generation.sampler
    decoded = list(sampled)
    for start in range(0, len(keys), batch):
        part = slice(start, start + batch)
        x = pixels.from_store(torch.stack([pixels.stored_version(image, 32) for image, _ in raw[part]]))
        expected = sampler.sample(x, torch.tensor([int(y) for _, y in raw[part]]), seeds[part])
        assert torch.equal(expected.latents, decoded.pop(0))
    assert decoded == [] and r.algorithm.generation.cache is None


def test_the_test_environment_is_never_asked_for(run, tmp_path, monkeypatch):
    """A first run trains on the environment, so its entries are in the folder. A second run tests on it.

    The second run reads and writes only entries of its own in-splits.
    """
    run(test_env=1, candidate_cache=str(tmp_path)).update(1)
    before = set(tmp_path.rglob("*.safetensors"))
    read, original = [], CandidateCache._read
    monkeypatch.setattr(CandidateCache, "_read", lambda self, path: read.append(path) or original(self, path))
    r = run(candidate_cache=str(tmp_path))
    r.update(1)
    allowed = {
        path
        for split in r.context.in_splits
        for index in split.keys
        for path in paths_of(r.algorithm.generation.cache, *split.source[index])
    }
    assert set(read) == allowed and set(tmp_path.rglob("*.safetensors")) == before | allowed
    assert before - allowed and allowed - before and before & allowed


def paths_of(cache, image, label):
    stored = pixels.stored_version(image, 32)
    seeds = shared_seeds(stored, f"a photo of a {NAMES[int(label)]}", 3)
    return [cache._path(tensors_digest({"image": stored}), int(label), seed) for seed in seeds]


def test_a_runs_identity_says_on_or_off(tiny_ldm):
    defaults = {**host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"), "ldm": tiny_ldm}
    off, on, elsewhere = (
        run_identity({**defaults, "candidate_cache": value}, torch.device("cpu"))["hparams"]
        for value in (None, "a", "b")
    )
    assert on == elsewhere == {**off, "candidate_cache": True} and off["candidate_cache"] is False


def test_provenance_has_the_shared_seeds(run, tmp_path, as_script):
    as_script("train", "--output_dir", str(tmp_path / "job"), "--steps", "2")
    r = run(candidate_cache=str(tmp_path / "cache"), save_generated="all")
    r.update(1)
    part, _ = read_part(tmp_path / "job/generated/rounds/round-001/part-000.safetensors")
    store = r.algorithm.generate_dataset
    for (split, index), seeds in zip(store.keys, part["seeds"].tolist()):
        image, label = store.in_splits[split].source[index]
        assert seeds == shared_seeds(pixels.stored_version(image, 32), f"a photo of a {NAMES[int(label)]}", 3)
    generate.generate_from_run(tmp_path / "job", tmp_path / "out")
    text = (tmp_path / "out" / "provenance.csv").read_text()
    assert all(str(seed) in text for row in part["seeds"].tolist() for seed in row)
    assert (
        json.loads((tmp_path / "job/generated/rounds/run.json").read_text())["identity"]["hparams"]["candidate_cache"]
        is True
    )
