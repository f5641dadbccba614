"""The counts, compared with a real run, with the host's own lists of jobs and with published sizes."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from domainbed_domainfusion.data.benchmarks import BENCHMARKS
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting import host, hparams
from domainbed_domainfusion.hosting.job_hparams import hparams_of

from .made_up import REQUIRED, sweep_jobs


def test_jobs_are_the_hosts_own():
    """Three trials, two algorithms, four environments alone and in pairs, two hparams seeds."""
    jobs, others = sweep_jobs("launch", "--datasets", "PACS", "--algorithms", "ERM", "DomainFusion", "--n_hparams", "2")
    assert (len(jobs), others) == (3 * 2 * (4 + 6) * 2, 0)
    assert jobs == host.module("scripts.sweep").make_args_list(
        3, ["PACS"], ["ERM", "DomainFusion"], 0, 2, None, "nowhere", "domain_generalization", 0.2, False, None
    )


def test_jobs_that_are_there_already_are_not_launched(tmp_path):
    arguments = [
        "--datasets",
        "PACS",
        "--algorithms",
        "ERM",
        "--single_test_envs",
        "--n_trials",
        "1",
        "--n_hparams",
        "1",
        "--data_dir",
        "d",
        "--command_launcher",
        "local",
        "--output_dir",
        str(tmp_path),
    ]
    first = counting.request(arguments).jobs[0]
    Path(first["output_dir"]).mkdir()
    request = counting.request(arguments)
    assert (len(request.jobs), request.begun_or_done) == (3, 1) and first not in request.jobs


def test_a_sweep_file_is_taken_too(tmp_path):
    """The jobs of the file's sweeps, in the folders of its launch."""
    file = tmp_path / "two.txt"
    file.write_text(
        "# Jobs: 12\n[a]\n--algorithms ERM SAM\n--datasets PACS\n--single_test_envs\n--n_trials 1\n"
        "--n_hparams 1\n[b]\n--algorithms ERM\n--datasets VLCS\n--single_test_envs\n--n_trials 1\n"
        "--n_hparams 1\n"
    )
    request = counting.request(["launch", str(file), *REQUIRED])
    assert [(Path(args["output_dir"]).parent.name, args["algorithm"]) for args in request.jobs] == (
        [("a", "ERM")] * 4 + [("a", "SAM")] * 4 + [("b", "ERM")] * 4
    )


def test_hparams_are_drawn_as_train_draws_them():
    args = sweep_jobs(
        "--datasets", "PACS", "--algorithms", "DomainFusion", "--n_hparams", "8", "--hparams", '{"denoising_steps": 9}'
    )[0]
    drawn = [hparams_of(each) for each in args if each["test_envs"] == [0] and each["trial_seed"] == 1]
    seeds = [host.lib.misc.seed_hash(seed, 1) for seed in range(8)]
    registry = host.hparams_registry
    expected = [
        registry.default_hparams("DomainFusion", "PACS"),
        *(registry.random_hparams("DomainFusion", "PACS", seed) for seed in seeds[1:]),
    ]
    assert drawn == [{**hparams, "denoising_steps": 9} for hparams in expected]
    assert {hparams["candidates"] for hparams in drawn} == {1, 3, 5}


@pytest.mark.parametrize(
    "steps, hparams",
    [
        (8, {"batch_size": 5}),  # 16 / 5 = 3.2 steps an epoch
        (17, {"batch_size": 5, "generation_interval": 2, "generation_budget": 4, "ld_draws": 2}),
        (9, {"generation_budget": 7, "candidates": 1}),
        (9, {"generation_budget": 7, "ld_when": "generation", "ld_draws": 3}),
        (8, {"ld_interval": 3, "ld_when": "step"}),
        (9, {"generation_budget": 7, "ld_when": "generation", "ld_interval": 3}),
        (9, {"ld_preset": "listing", "ld_input": "raw", "lambda3": 0.0}),
        (5, {"generation_budget": 1000, "ld_images": 1000}),
        (9, {"updating": False, "generation_interval": 3}),
        (9, {"sampling_strategy": False, "lambda3": 0.0}),
        (5, {"lambda3": 0.0, "ld_input": "raw"}),
        (5, {"lambda2": 0.0, "lambda3": 0.0}),
        (3, {"generation_interval": 5}),
    ],
)
def test_counts_are_what_a_run_does(host_run, tiny_ldm, tiny_dataset, steps, hparams):
    """A run reports its generated images. Spies count its candidates and LD gradients."""
    run = host_run(
        "DomainFusion",
        0,
        ldm=tiny_ldm,
        **{"denoising_steps": 2, "generation_interval": 1, "gallery": 0, "ld_images": 2, **hparams},
    )
    images = [len(environment) for environment in run.dataset]
    args = {
        "dataset": "TinyDigits",
        "algorithm": "DomainFusion",
        "test_envs": [0],
        "holdout_fraction": 0.2,
        "steps": steps,
    }
    counted = counting.count(args, run.hparams, images)
    made = {"kept": 0, "candidates": 0, "ld_gradients": 0, "raw_steps": 0}
    for step in range(steps):
        if step == 0:  # the model is loaded in the first update
            _spy(run.algorithm, made)
        (values,) = run.update(1)
        made["kept"] += int(values["generated_images"])
        made["raw_steps"] += run.algorithm.generate_dataset is None or run.algorithm.generate_dataset.rounds == 0
    rounds = run.algorithm.generate_dataset.rounds if run.algorithm.generate_dataset else 0
    assert {name: getattr(counted, name) for name in made} == made
    assert counted.rounds == rounds
    assert min(counting.in_splits(images, 0.2)) / run.hparams["batch_size"] == run.context.steps_per_epoch


@pytest.mark.parametrize("share, steps", [(0.2, 12), (0.33, 7), (0.0, 3), (1.0, 3)])
def test_udims_warm_up(host_run, tiny_dataset, as_script, share, steps):
    as_script("train", "--algorithm", "UDIM", "--dataset", "TinyDigits", "--steps", str(steps))
    run = host_run("UDIM", 0, udim_warm_up=share)
    args = {"dataset": "TinyDigits", "algorithm": "UDIM", "test_envs": [0], "holdout_fraction": 0.2, "steps": steps}
    counted = counting.count(args, run.hparams, [20, 21, 22])
    assert counted.raw_steps == sum(values["inconsistency"] == 0 for values in run.update(steps))


def test_swad_reads_the_training_domains_out_splits_at_each_checkpoint():
    args = {"dataset": "Debug28", "algorithm": "ERM", "test_envs": [1], "holdout_fraction": 0.2, "steps": 3}
    counts = [
        counting.count({**args, "checkpoint_freq": 1}, {"batch_size": 8, **hparams}, [20, 25, 32]).evaluated
        for hparams in ({}, {"weight_average": "swad"})
    ]
    assert counts == [3 * 77, 3 * (77 + 4 + 6)]


def _spy(algorithm, made: dict) -> None:
    if not algorithm.uses_diffusion:
        return
    algorithm.load_diffusion(torch.device("cpu"))
    sampler, distillation = algorithm.generation.sampler, algorithm.distillation
    sample, coefficients = sampler.sample, distillation.coefficients

    def counted_sample(images, labels, seeds):
        candidates = sample(images, labels, seeds)
        made["candidates"] += candidates.images.shape[:2].numel()
        return candidates

    def counted_coefficients(images, *arguments):
        made["ld_gradients"] += len(images) * distillation.draws
        return coefficients(images, *arguments)

    sampler.sample, distillation.coefficients = counted_sample, counted_coefficients


@pytest.mark.parametrize("steps, algorithm", [(13, "ERM"), (14, "ERM"), (7, "SAM")])
def test_evaluated_images_are_those_of_the_hosts_train(
    monkeypatch, tmp_path, tiny_dataset, as_script, steps, algorithm
):
    """TinyDigits has 20 + 21 + 22 images and a checkpoint every 6 steps."""
    seen = []
    accuracy = host.lib.misc.accuracy

    def counted(network, loader, weights, device):
        batches = list(loader)
        seen.append(sum(len(x) for x, _ in batches))
        return accuracy(network, batches, weights, device)

    monkeypatch.setattr(host.lib.misc, "accuracy", counted)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    hparams = {"batch_size": 4, "backbone": "mnist_cnn"}
    as_script(
        "train",
        "--algorithm",
        algorithm,
        "--dataset",
        "TinyDigits",
        "--steps",
        str(steps),
        "--output_dir",
        str(tmp_path),
        "--hparams",
        json.dumps(hparams),
    )
    runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
    rows = (tmp_path / "results.jsonl").read_text().splitlines()
    args = {"dataset": "TinyDigits", "algorithm": algorithm, "test_envs": [0], "holdout_fraction": 0.2, "steps": steps}
    counted_job = counting.count(args, hparams, [20, 21, 22])
    assert (counted_job.evaluated, counted_job.checkpoints) == (sum(seen), len(rows))


def test_the_published_sizes():
    totals = {"PACS": 9991, "VLCS": 10729, "OfficeHome": 15588, "TerraIncognita": 24330, "DomainNet": 586575}
    assert {name: sum(benchmark.images) for name, benchmark in BENCHMARKS.items()} == totals
    for name, benchmark in BENCHMARKS.items():
        assert len(benchmark.images) == host.datasets.num_environments(name)


def test_bad_arguments_are_named():
    for arguments, message in (
        (["--datasets", "PACKS"], "The host knows no dataset 'PACKS'"),
        (["--algorithms", "ERN"], "The host knows no algorithm 'ERN'"),
        (["--hparams", '{"candidate": 3}'], "did you mean 'candidates'"),
    ):
        with pytest.raises(InputError, match=message):
            counting.request([*arguments, *REQUIRED])
    with pytest.raises(InputError, match="lacks --data_dir, --output_dir, --command_launcher"):
        counting.request(["--datasets", "PACS"])


def test_synthetic_is_counted_as_domainfusion_with_its_defaults():
    counts = []
    for name, given in (("Synthetic", {}), ("DomainFusion", hparams.SYNTHETIC)):
        args = {"algorithm": name, "dataset": "DigitStyles", "test_envs": [0], "holdout_fraction": 0.2, "steps": 300}
        args |= {
            "hparams_seed": 0,
            "trial_seed": 0,
            "hparams": json.dumps({"generation_budget": 400, "generation_interval": 1, **given}),
        }
        job = counting.count(args, hparams_of(args), [1500] * 4)
        counts.append((job.rounds, job.kept, job.candidates, job.ld_gradients))
    assert counts[0] == counts[1] and counts[0][1] == counts[0][2] > 0 and counts[0][3] == 0
