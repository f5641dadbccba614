"""CDGA: which images are generated under which prompts, and ERM on the unions, on a tiny diffusion model."""

import copy
import json
import runpy
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from domainbed_domainfusion.algorithms import cdga
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.generated import saved_rounds
from domainbed_domainfusion.generated.saved_rounds import SavedRun
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.runs.generate import generate_from_run
from domainbed_domainfusion.runs.trained_model import TrainedModel
from domainbed_domainfusion.seeding import seed_of

from ..conftest import TinyDigits, WiredDigits
from .beside_erm import assert_it_is_erm

WORDS = {"X": "a photo", "Y": "a cartoon", "Z": "a sketch"}
FAST = {"denoising_steps": 4, "gallery": 0, "cdga_descriptions": WORDS}


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda **hparams: host_run("CDGA", **{"ldm": tiny_ldm, **FAST, **hparams})


@pytest.fixture
def sampled(monkeypatch):
    """(prompt, image) of every candidate."""
    found, sample = [], CandidateSampler.sample

    def spy(self, images, labels, seeds):
        made = sample(self, images, labels, seeds)
        assert made.images.shape[1] == 1
        found.extend((self.prompts.texts[label], image) for label, image in zip(labels.tolist(), images.cpu()))
        return made

    monkeypatch.setattr(CandidateSampler, "sample", spy)
    return found


def expected_prompts(r, guides):
    labels = [int(r.dataset[split.environment][key][1]) for split in r.context.in_splits for key in split.keys]
    return Counter(f"a {TinyDigits.CLASS_NAMES[label]}, {WORDS[guide]}" for guide in guides for label in labels)


@pytest.mark.parametrize("test_env, guides", [(0, "YZ"), (1, "XZ"), (2, "XY")])
def test_every_image_meets_every_training_domains_description_once(run, sampled, test_env, guides):
    r = run(test_env=test_env)
    values = r.update(6)
    assert Counter(prompt for prompt, _ in sampled) == expected_prompts(r, guides)
    sources = Counter(image.numpy().tobytes() for _, image in sampled)
    assert set(sources.values()) == {2} and len(sources) == sum(len(split.keys) for split in r.context.in_splits)
    assert [row["generated_images"] for row in values] == [len(sampled), 0, 0, 0, 0, 0]


def test_starred_uses_the_test_domains_description_too(run, sampled):
    r = run(test_env=0, cdga_starred=True)
    r.update(1)
    assert Counter(prompt for prompt, _ in sampled) == expected_prompts(r, "YZX")


def test_versions_differ_by_guide_and_keep_the_label(run):
    r = run()
    r.update(1)
    first, second = r.algorithm.generate_dataset.datasets
    rows = range(len(first.keys))
    (one, labels), (other, same_labels) = first.versions(rows), second.versions(rows)
    assert first.keys == second.keys and torch.equal(labels, same_labels)
    assert not any(torch.equal(a, b) for a, b in zip(one, other))


def test_a_version_is_image_to_image_generation_under_its_prompt(run):
    """The same sampler asked for one image alone."""
    r = run(strength=0.75)
    r.update(1)
    ours, row = r.algorithm, 5
    second = ours.generate_dataset.datasets[1]
    split, index = second.keys[row]
    source = r.context.in_splits[split]
    image, label = source.source[index]
    sampler = ours.generation.sampler
    assert sampler.strength == 0.75 and sampler.source == "image"
    sampler.prompts = ours.generate_dataset.prompts[1]
    assert sampler.prompts.texts[label] == f"a {TinyDigits.CLASS_NAMES[label]}, a sketch"
    stored = ((image * 255).round() / 255 * 2 - 1)[None]
    seed = seed_of(0, "candidate", source.environment, index, 1, 0)
    made = sampler.sample(stored, torch.tensor([int(label)]), [[seed]]).images[0, 0]
    kept = second.version(row)[0].float() / 255 * 2 - 1
    torch.testing.assert_close(kept, made.clamp(-1, 1), rtol=0, atol=1.1 / 127)


def test_a_step_is_erms_on_minibatches_of_the_unions(run):
    r = run()
    r.update(1)
    ours, batch = r.algorithm, next(r.minibatches)
    drawn = ours.union(batch)
    x, y = (torch.cat(parts) for parts in zip(*drawn))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(ours.predict(x), y)
    assert ours.update(batch)["loss"] == pytest.approx(expected.item(), rel=1e-6)
    group = ours.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (r.hparams["lr"], r.hparams["weight_decay"])
    assert group["lr"] == host.hparams_registry.default_hparams("ERM", "DigitStyles")["lr"]


def test_places_are_uniform_over_images_and_versions(run):
    """With 4 of some 17 images per domain generated under 2 guides; each place is one of its three candidates."""
    r = run(generation_budget=8)
    r.update(1)
    ours, batch = r.algorithm, next(r.minibatches)
    counts, total = Counter(), 0
    for ours.step in range(1, 301):
        guided = ours.generate_dataset.minibatches(ours.step)
        for (x, y), (raw, raw_y), others in zip(ours.union(batch), batch, guided):
            for i in range(len(x)):
                images = [(raw[i], raw_y[i]), *((g[i], labels[i]) for g, labels in others)]
                (place,) = [k for k, (image, label) in enumerate(images) if torch.equal(image, x[i])]
                assert images[place][1] == y[i]
                counts[place] += 1
                total += 1
    raw = sum(len(split.keys) for split in r.context.in_splits) / 2
    for place, share in ((0, raw / (raw + 8)), (1, 4 / (raw + 8)), (2, 4 / (raw + 8))):
        assert counts[place] / total == pytest.approx(share, abs=0.03)


def test_a_domain_without_a_generated_image_keeps_its_own(run):
    r = run(generation_budget=1)
    r.update(1)
    batch = next(r.minibatches)
    drawn = r.algorithm.union(batch)
    assert len(r.algorithm.generate_dataset.minibatches(1)[1][0][0]) == 0
    assert torch.equal(drawn[1][0], batch[1][0]) and len(drawn[0][0]) == len(batch[0][0])


@pytest.mark.parametrize("test_env", [0, 2])
def test_nothing_of_a_test_environment_or_a_validation_split_is_read(run, test_env):
    r = run(dataset=WiredDigits, test_env=test_env, cdga_starred=True)
    r.update(6)
    for i, environment in enumerate(r.dataset.datasets):
        assert environment.read == (set() if i == test_env else set(r.in_splits[i].keys))


def test_the_raw_minibatches_do_not_depend_on_generation(run, host_run):
    labels = []
    for make in (run, lambda: host_run("ERM")):
        r = make()
        r.update(3)
        labels.append([y.tolist() for _, y in next(r.minibatches)])
    assert labels[0] == labels[1]


def test_outside_a_run_it_is_erm_bit_for_bit(tiny_ldm):
    with pytest.warns(UserWarning, match="generates nothing here"):
        assert_it_is_erm("CDGA", ldm=tiny_ldm)


def test_a_domain_without_a_description_is_refused_before_training(run):
    words = {"X": "a photo", "Y": "a cartoon"}
    with pytest.raises(InputError, match="CDGA has no description of the domain Z of TinyDigits: give one for each "
                       "domain, for example --hparams '{\"cdga_descriptions\": {\"Z\": \"a photo\"}}'."):  # fmt: skip
        run(cdga_descriptions=words)
    run(cdga_descriptions=words, test_env=2)
    with pytest.raises(InputError, match="no description of the domain Z"):
        run(cdga_descriptions=words, test_env=2, cdga_starred=True)
    with pytest.raises(InputError, match="no description of the domain Y"):
        run(cdga_descriptions=None)
    with pytest.raises(InputError, match="cdga_descriptions is .*, but must be null, or an object with a text for"):
        run(cdga_descriptions=["a photo"])


@pytest.mark.parametrize("dataset", cdga.DESCRIPTIONS)
def test_our_descriptions_are_of_the_datasets_domains(dataset):
    assert list(cdga.DESCRIPTIONS[dataset]) == getattr(host.datasets, dataset).ENVIRONMENTS


def train(as_script, tmp_path, *steps):
    as_script("train", "--dataset", "TinyDigits", "--algorithm", "CDGA", "--output_dir", str(tmp_path), *steps)


def test_saved_versions_are_read_again_by_the_same_run_alone(run, sampled, as_script, tmp_path):
    train(as_script, tmp_path)
    losses = [row["loss"] for row in run(save_generated="all").update(4)]
    made = len(sampled)
    assert [row["loss"] for row in run(save_generated="all").update(4)] == losses and len(sampled) == made
    saved = SavedRun.open(tmp_path / "guides" / "Z")
    assert saved.sources["prompts"] == [f"a {name}, a sketch" for name in TinyDigits.CLASS_NAMES]
    generate_from_run(tmp_path / "guides" / "Z", tmp_path / "exported")
    assert len(list((tmp_path / "exported").rglob("*.png"))) == made / 2
    other = {**WORDS, "Z": "a drawing"}
    run(save_generated="all", cdga_descriptions=other).update(1)
    assert len(sampled) == 2 * made


def test_it_goes_on_from_a_checkpoint(run, sampled, as_script, tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINFUSION_RESUME", "on")
    train(as_script, tmp_path)
    whole = run(save_generated="none")
    whole.update(3)
    state = json.loads(json.dumps(whole.algorithm.resume_state()))
    weights, optimizer = copy.deepcopy((whole.algorithm.state_dict(), whole.algorithm.optimizer.state_dict()))
    losses = [row["loss"] for row in whole.update(3)]
    made, again = len(sampled), run(save_generated="none")
    for _ in range(3):
        next(again.minibatches)
    again.algorithm.load_state_dict(weights)
    again.algorithm.optimizer.load_state_dict(optimizer)
    again.algorithm.step = 3
    again.algorithm.load_resume_state(state)
    assert [row["loss"] for row in again.update(3)] == losses and len(sampled) == made
    assert sorted(path.name for path in (tmp_path / "resume" / "guides").iterdir()) == ["Y", "Z"]


def test_loader_workers_are_shared_by_the_guides(run, monkeypatch):
    monkeypatch.setattr(TinyDigits, "N_WORKERS", 0)
    r = run()
    monkeypatch.setattr(TinyDigits, "N_WORKERS", 3)
    r.algorithm.load_diffusion(torch.device("cpu"))
    assert [dataset.workers for dataset in r.algorithm.generate_dataset.datasets] == [2, 2]


def test_a_disk_too_small_for_all_guides_is_said_before_generation(run, as_script, tmp_path, monkeypatch, sampled):
    """One guide's round would fit."""
    train(as_script, tmp_path)
    usage = SimpleNamespace(free=35 * (3 * 32 * 32 + 64) * 3 // 2)
    monkeypatch.setattr(saved_rounds.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="Saving the generated images \\(1 rounds of 70\\) takes 0.0 GB more, but"):
        run(save_generated="all").update(1)
    assert not sampled


def test_the_hosts_train_script_runs_it(tiny_dataset, tiny_ldm, monkeypatch, tmp_path, as_script):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    given = {"ldm": tiny_ldm, "image_size": 32, "batch_size": 4, "backbone": "mnist_cnn", **FAST, "gallery": 1}
    train(as_script, tmp_path, "--steps", "3", "--checkpoint_freq", "1", "--hparams", json.dumps(given))
    runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["generated_images"] > 0 for row in rows] == [True, False, False]
    assert (tmp_path / "guides" / "Y" / "generated" / "gallery.json").is_file()
    as_script("collect_results")  # where there is no run
    TrainedModel.read(tmp_path).algorithm(torch.device("cpu"), lambda image: image)


def test_it_is_counted(run, as_script, tmp_path, tiny_dataset):
    for starred in (False, True):
        r = run(test_env=1, cdga_starred=starred, generation_budget=9)
        made = int(sum(row["generated_images"] for row in r.update(3)))
        args = {"dataset": "TinyDigits", "algorithm": "CDGA", "test_envs": [1], "holdout_fraction": 0.2, "steps": 3}
        counted = counting.count(args, r.hparams, [20, 21, 22])
        assert (counted.rounds, counted.kept, counted.candidates, counted.raw_steps) == (1, made, made, 0)
        assert counted.ld_gradients == 0 and made == 9 * (2 + starred)
