"""The evaluations of the U-Net that are counted: those that the U-Net sees, image by image; and the job's file."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from domainbed_domainfusion.diffusion import evaluations
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.evaluations import COUNT, FILE, EvaluationCount
from domainbed_domainfusion.diffusion.fine_tuning import Pictures, fine_tuned
from domainbed_domainfusion.diffusion.invariant_guidance import InvariantGuidance, invariantly_guided
from domainbed_domainfusion.diffusion.projection import Projection
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.hosting.hparams import added_defaults

HPARAMS = {**added_defaults("DomainFusion", "DigitStyles"), "denoising_steps": 2}


@pytest.fixture(scope="module")
def model():
    return PromptedModel.load(HPARAMS, ["zero", "one", "two"], torch.device("cpu"))


@pytest.fixture
def seen(monkeypatch):
    """The number of latents in each call of a U-Net."""
    latents: list[int] = []
    forward = UNet2DConditionModel.forward

    def watched(self, sample, timestep, *rest, **options):
        latents.append(len(timestep))
        return forward(self, sample, timestep, *rest, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    return latents


def images(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def candidates(model):
    sampler = CandidateSampler.of(model, {**HPARAMS, "guidance_interval": 0.5})
    sampler.sample(images(2), torch.tensor([0, 2]), [[1, 2, 3], [4, 5, 6]])
    return 2 * 3 * (2 + 1)  # the first of two steps is guided


def distillation(model):
    ld = LatentDistillation(model.ldm, model.prompts, guidance_scale=2.0, draws=3)
    ld.micro_batch = 2  # so that none is made to see how many fit into memory
    ld.coefficients(images(2), torch.tensor([0, 1]), torch.tensor([0.2, 0.9]), seeds=[1, 2])
    return 2 * 3 * 2


def projection(model):
    Projection(model.ldm, model.ldm.embed([""]), steps=4, noised=2, weight=1.0, factor=4)(images(3), [1, 2, 3])
    return 3 * 2


def tuning(model):
    fine_tuned(
        model.ldm,
        model.ldm.embed([""]),
        [Pictures(5, lambda i: (images(1)[0], 0))],
        steps=2,
        rate=1e-4,
        batch=4,
        identity=(1,),
        name="A",
    )
    return 2 * 4


def invariant_guidance(model):
    """Two U-Nets; in training two passes, because the variance needs the errors first."""
    hparams = {**HPARAMS, "invariant_steps": 2, "invariant_batch": 3, "guidance_scale": 1.0}
    domains = [Pictures(5, lambda i: (images(1)[0], 1)) for _ in range(2)]
    CandidateSampler.of(guided := invariantly_guided(model, domains, hparams, (1,)), hparams).sample(
        images(2), torch.tensor([0, 2]), [[1], [2]]
    )
    assert isinstance(guided.ldm._unet, InvariantGuidance)
    return 2 * (2 * 2 * 3 * 2) + 2 * (2 * 2)


@pytest.mark.parametrize("work", [candidates, distillation, projection, tuning, invariant_guidance])
def test_each_latent_at_each_timestep_is_counted_once(model, seen, work):
    before = COUNT.number
    expected = work(model)
    assert COUNT.number - before == expected == sum(seen)


def test_the_number_is_kept_in_the_jobs_folder_and_goes_on_there(tmp_path):
    job = tmp_path / "job"
    first = EvaluationCount()
    first.add(7)  # before the run
    first.keep_in(job)
    first.save()
    assert evaluations.read(job) is None and not job.exists()  # a job without a diffusion model leaves no file
    first.add(10)
    first.add(5)
    first.save()
    assert evaluations.read(job) == 15 and json.loads((job / FILE).read_text()) == {"unet_evaluations": 15}
    second = EvaluationCount()
    second.keep_in(job)
    second.add(1)
    second.save()
    assert evaluations.read(job) == 16
    second.keep_in(None)
    second.add(100)
    second.save()
    assert evaluations.read(job) == 16


def test_it_is_written_from_time_to_time(tmp_path, monkeypatch):
    count = EvaluationCount()
    count.keep_in(tmp_path)
    count.add(1)
    assert evaluations.read(tmp_path) is None
    monkeypatch.setattr(evaluations, "SECONDS", -1)
    count.add(2)
    assert evaluations.read(tmp_path) == 3


def test_a_program_that_changes_its_folder_later_writes_where_the_job_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = EvaluationCount()
    count.keep_in(Path("job"))
    count.add(4)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    count.save()
    assert evaluations.read(tmp_path / "job") == 4
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"other": 1}', '{"unet_evaluations": null}'])
def test_a_damaged_file_is_no_number(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert evaluations.read(tmp_path) is None


def test_a_disk_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "job").write_text("a file where the folder should be")
    count = EvaluationCount()
    count.keep_in(tmp_path / "job")
    count.add(1)
    count.save()
    assert "Cannot write" in capsys.readouterr().out
