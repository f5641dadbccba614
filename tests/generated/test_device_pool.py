"""Candidates from several processes are those of one, also when a process dies; and what is said about bad devices."""

import json
import types

import pytest
import torch

from domainbed_domainfusion.algorithms.domainfusion import DomainFusion
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.evaluations import COUNT
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated import device_pool
from domainbed_domainfusion.generated.device_pool import DevicePool, devices_of
from domainbed_domainfusion.hosting.hparams import added_defaults

from .. import forks
from ..resuming import tiny_folder
from ..resuming.jobs import differences

CPU = torch.device("cpu")
NAMES = ["zero", "one", "two"]
HPARAMS = {**added_defaults("DomainFusion", "DigitStyles"), "denoising_steps": 2}


@pytest.fixture(scope="module")
def sampler():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each process of the pool
    yield CandidateSampler.of(PromptedModel.load(HPARAMS, NAMES, CPU), HPARAMS)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pool(sampler):
    """Three processes. With `pool.devices` shortened, fewer of them are used."""
    return DevicePool(sampler, ["cpu"] * 3, HPARAMS, NAMES)


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(7, 2, 3, 32, 32, generator=generator) * 2 - 1
    return [(images, torch.tensor([i % 3, 2]), [[10 * i, 10 * i + 1], [-i, 99]]) for i, images in enumerate(x)]


@pytest.fixture(scope="module")
def expected(sampler, batches):
    return [sampler.sample(*batch) for batch in batches]


def check(pool, batches, expected):
    for batch, one in zip(batches, expected):
        made = pool.sample(*batch)
        assert torch.equal(made.images, one.images) and torch.equal(made.latents, one.latents)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_number_of_processes_does_not_change_a_bit(pool, batches, expected, devices, monkeypatch):
    monkeypatch.setattr(pool, "devices", ["cpu"] * devices)
    monkeypatch.setattr(pool, "_next", 0)
    asked = []
    pool.ahead(asked.append(i) or batch for i, batch in enumerate(batches))
    assert len(asked) == min(2 * devices, len(batches))  # more would only take memory
    before = COUNT.number
    check(pool, batches, expected)
    assert COUNT.number - before == len(batches) * 4 * 2 * 2  # candidates, steps, with guidance
    assert len(asked) == len(batches)
    check(pool, batches[:2], expected)  # nothing was said ahead


def test_a_process_that_dies_is_named_and_its_images_are_made_again(pool, batches, expected, capsys):
    pool.ahead(iter(batches))
    (process,) = pool._executor(1)._processes.values()
    process.kill()
    process.join()
    check(pool, batches, expected)
    assert capsys.readouterr().out == (
        "The process that generates on cpu has ended: it is started again, and its images are made again (attempt 1 of "
        "3).\n"
    )


def test_bad_devices_are_said_before_the_model_loads(monkeypatch):
    def load(*_):
        raise AssertionError("it loads")

    monkeypatch.setattr(PromptedModel, "load", load)
    run = types.SimpleNamespace(hparams={"generation_devices": ["cuda:9"]}, uses_generated=True, class_names=NAMES)
    with pytest.raises(InputError, match="names 'cuda:9', and the classifier is trained on a cpu device"):
        DomainFusion.load_diffusion(run, CPU)


class Dead:
    """An executor whose process is dead whatever is asked of it."""

    def submit(self, *args):
        raise device_pool.BrokenProcessPool("gone")


def test_a_process_that_dies_again_and_again_ends_the_run_with_the_remedy(sampler, batches, monkeypatch, capsys):
    pool = DevicePool(sampler, ["cpu"], HPARAMS, NAMES)
    monkeypatch.setattr(pool, "_executor", lambda place: Dead())
    with pytest.raises(InputError) as raised:
        pool.sample(*batches[0])
    assert str(raised.value) == (
        "The process that generates on cpu has ended 3 times with the same images, as when the memory is used up: "
        "lower generation_batch, or name fewer devices in generation_devices."
    )
    assert capsys.readouterr().out.count("has ended") == 3


def test_the_devices_of_the_hparam(monkeypatch):
    assert devices_of(None, CPU) == []
    assert devices_of(["cpu", "cpu"], CPU) == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("all", torch.device("cuda:1")) == ["cuda:0", "cuda:1"]
    assert devices_of(["cuda:1"], torch.device("cuda")) == ["cuda:1"]


@pytest.mark.parametrize(
    "value, own, sentence",
    [
        ("all", "cpu", 'is "all", and there is no GPU here: give null, or a list such as ["cpu", "cpu"].'),
        (["cpu:x"], "cpu", "names 'cpu:x', which is no device: correct it."),
        (["cuda:0"], "cuda", "names 'cuda:0', and this machine has 0 GPUs: name fewer, or give \"all\"."),
        (["cpu"], "cuda", "names 'cpu', and the classifier is trained on a cuda device: name devices of one kind"),
    ],
)
def test_a_device_that_cannot_be_used_is_said_before_anything_is_loaded(monkeypatch, value, own, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError) as raised:
        devices_of(value, torch.device(own))
    assert sentence in str(raised.value)


def test_a_whole_run_on_two_devices_is_the_run_on_one(tmp_path):
    """The host's train script, whose processes are spawned and so import the script again."""
    tiny_folder.write(tmp_path / "data")
    for name, devices in (("one", None), ("two", ["cpu", "cpu"])):
        hparams = {"generation_devices": devices}
        arguments = tiny_folder.train_arguments(tmp_path / "data", tmp_path / name, "DomainFusion", **hparams)
        script = "domainbed_domainfusion.minibed.scripts.train"
        forks.run(script, *arguments, environment={"DOMAINFUSION_RESUME": "off"}, folder=tmp_path).check_returncode()
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert two[0]["hparams"]["generation_devices"] == ["cpu", "cpu"] and two[0]["generated_images"] > 0
    how_started = {"args": one[0]["args"], "hparams": one[0]["hparams"]}
    (tmp_path / "two" / "results.jsonl").write_text("".join(json.dumps({**row, **how_started}) + "\n" for row in two))
    assert differences(tmp_path / "one", tmp_path / "two") == []
