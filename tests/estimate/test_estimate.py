"""Counts against a real run, published sizes and architectures, and the whole estimate at tiny size."""

import json
import runpy
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from domainbed_domainfusion import cli
from domainbed_domainfusion.diffusion.source import check_folder
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import Data, Estimate, StandIns, calibration, costs, counting, measure, stand_ins
from domainbed_domainfusion.estimate import printout as tables
from domainbed_domainfusion.estimate.benchmarks import BENCHMARKS
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pocket.digit_styles import digit_styles_class

REQUIRED = ["--output_dir", "nowhere", "--data_dir", "nowhere", "--command_launcher", "local"]


def sweep_jobs(*arguments: str) -> tuple[list[dict], int]:
    """The args of the jobs without their folders, and how many others there are."""
    asked = counting.request([*arguments, *REQUIRED])
    return [{name: value for name, value in args.items() if name != "output_dir"} for args in asked.jobs], asked.others


def job(hparams=None, **counts) -> counting.Job:
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [0]}
    return counting.Job(args, hparams or {}, **{"steps": 10, "checkpoints": 2, "evaluated": 100, **counts})


def rates(**values) -> calibration.Rates:
    zero = dict.fromkeys(
        (
            "imports",
            "startup",
            "ended",
            "warm_up",
            "raw_step",
            "step",
            "evaluated",
            "saving",
            "model_bytes",
            "ram_bytes",
            "loader_processes",
            "prefetched_bytes",
        ),
        0,
    )
    return calibration.Rates(**{**zero, "threads": 1, "device": "cpu", **values})


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What an estimate changes in this process: where the host's sweep was imported, and the hub's offline switch."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(f"{host.NAME}.scripts.sweep", None)


# counting


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
    asked = counting.request(arguments)
    assert (len(asked.jobs), asked.others) == (3, 1) and first not in asked.jobs


def test_a_sweep_file_is_taken_too(tmp_path):
    """Its own jobs, in the folders that a launch of it makes."""
    file = tmp_path / "two.txt"
    file.write_text(
        "# Jobs: 12\n[a]\n--algorithms ERM SAM\n--datasets PACS\n--single_test_envs\n--n_trials 1\n"
        "--n_hparams 1\n[b]\n--algorithms ERM\n--datasets VLCS\n--single_test_envs\n--n_trials 1\n"
        "--n_hparams 1\n"
    )
    asked = counting.request(["launch", str(file), *REQUIRED])
    assert [(Path(args["output_dir"]).parent.name, args["algorithm"]) for args in asked.jobs] == (
        [("a", "ERM")] * 4 + [("a", "SAM")] * 4 + [("b", "ERM")] * 4
    )


def test_hparams_are_drawn_as_train_draws_them():
    args = sweep_jobs(
        "--datasets", "PACS", "--algorithms", "DomainFusion", "--n_hparams", "8", "--hparams", '{"denoising_steps": 9}'
    )[0]
    drawn = [counting.hparams_of(each) for each in args if each["test_envs"] == [0] and each["trial_seed"] == 1]
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
        (5, {"generation_budget": 1000, "ld_images": 1000}),
        (9, {"updating": False, "generation_interval": 3}),
        (9, {"sampling_strategy": False, "lambda3": 0.0}),
        (5, {"lambda3": 0.0, "ld_input": "raw"}),
        (5, {"lambda2": 0.0, "lambda3": 0.0}),
        (3, {"generation_interval": 5}),
    ],
)
def test_counts_are_what_a_run_does(host_run, tiny_ldm, tiny_dataset, steps, hparams):
    """The run reports its images; candidates and LD gradients are counted where they are made."""
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
    """TinyDigits: 20 + 21 + 22 images, a checkpoint every 6 steps."""
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


# settings, rates and costs


def test_a_setting_is_what_decides_the_time():
    base = {"batch_size": 16, "candidates": 3, "lr": 1e-4, "denoising_steps": 12, "strength": 0.8, "backbone": "a"}
    group = calibration.group_of(job(base))
    for same in ({"lr": 1e-3}, {"batch_size": 32}, {"candidates": 5}):
        assert calibration.group_of(job({**base, **same})) == group
    for other in ({"denoising_steps": 9}, {"strength": 0.5}, {"backbone": "b"}):
        assert calibration.group_of(job({**base, **other})) != group
    assert calibration.group_of(job(base, domains=2)) != group


def test_corners_and_the_line_between_them():
    jobs = [job({"batch_size": b, "candidates": c}) for b, c in ((8, 5), (20, 1), (40, 3))]
    low, high = calibration.corners(jobs)
    assert [point.hparams for point in (low, high)] == [
        {"batch_size": 8, "candidates": 1},
        {"batch_size": 40, "candidates": 5},
    ]
    assert len(calibration.corners(jobs[:1] * 3)) == 1
    measured = calibration.Measured([(low, rates(step=1.0, kept=10.0)), (high, rates(step=5.0, kept=50.0))])
    assert measured.rate("step", jobs[1], "batch_size") == pytest.approx(2.5)
    assert measured.rate("kept", jobs[2], "candidates") == pytest.approx(30.0)
    assert measured.rate("step", jobs[1]) == 3.0


def test_seconds_of_a_job():
    """Each part by hand."""
    measured = calibration.Measured(
        [
            (
                job(),
                rates(
                    startup=5,
                    ended=1,
                    warm_up=2,
                    load=3,
                    raw_step=0.5,
                    step=1.0,
                    kept=0.25,
                    ld_gradient=0.125,
                    evaluated=0.01,
                    saving=6,
                ),
            )
        ]
    )
    made = counting.Job(
        {},
        {},
        steps=10,
        checkpoints=3,
        evaluated=300,
        rounds=2,
        kept=8,
        candidates=24,
        ld_gradients=16,
        raw_steps=4,
        domains=3,
    )
    assert costs.seconds(made, measured) == costs.Seconds(11, 8, 2, 2, 3, 6)
    assert costs.seconds(made, measured).total == 32


def test_the_generate_dataset_is_counted_in_memory_or_on_the_disk():
    """DomainNet's 410,000 images of 320 pixels are a file of 126 GB; 1,000 of them are 0.3 GB of memory."""
    hparams = {"image_size": 320, "save_generated": "none", "gallery": 0}
    measured = calibration.Measured([(job(), rates(ram_bytes=10**9))])
    counts = {"steps": 10, "checkpoints": 0, "evaluated": 0, "rounds": 2}
    small = counting.Job({}, hparams, kept=2 * 1000, **counts)
    large = counting.Job({}, hparams, kept=2 * 410_000, **counts)
    assert costs.ram_bytes(small, measured) == 10**9 + 1000 * 3 * 320 * 320
    assert costs.disk_bytes(small, measured) == 0
    assert costs.ram_bytes(large, measured) == 10**9
    assert costs.disk_bytes(large, measured) == 410_000 * 3 * 320 * 320 == 125_952_000_000
    assert costs.ram_bytes(job(), measured) == 10**9


def test_wall_clock():
    assert costs.wall_clock([3, 1, 2], 1) == 6
    assert costs.wall_clock([2] * 5, 2) == 6
    assert costs.wall_clock([3, 1, 2], 8) == 3
    # of the six orders of 3, 1, 2 on two places, (3 1 2), (1 3 2), (3 2 1), (2 3 1) end after 3 or 4
    ends = {(3, 1, 2): 3, (3, 2, 1): 3, (1, 3, 2): 3, (2, 3, 1): 3, (1, 2, 3): 4, (2, 1, 3): 5}
    assert costs.wall_clock([3, 1, 2], 2) == pytest.approx(sum(ends.values()) / 6, abs=0.2)


def test_disk():
    """By hand: a model, three lines, two rounds of 4 saved images, and 2 followed images of 3 domains thrice."""
    measured = calibration.Measured([(job(), rates(model_bytes=1000))])
    hparams = {"gallery": 2, "image_size": 8, "save_generated": "all"}
    made = job(hparams, checkpoints=3, rounds=2, kept=8, domains=3)
    assert costs.disk_bytes(made, measured) == 1000 + 3 * costs.LINE_BYTES + (8 + 18) * 192
    made.hparams["save_generated"] = "none"
    assert costs.disk_bytes(made, measured) == 1000 + 3 * costs.LINE_BYTES + 18 * 192


def test_multi_gpu_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="needs a GPU and this machine has none: give --command_launcher local"):
        calibration.conditions_of("multi_gpu", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,")
    environments = calibration.conditions_of("multi_gpu", 4).environments
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["1", "2"]


def test_durations_have_the_unit_that_fits():
    assert [tables.duration(s) for s in (41.4, 740, 19440, 1.1e6)] == ["41 s", "12.3 min", "5.4 h", "12.7 days"]


# stand-ins


def test_pictures_in_a_benchmarks_layout(tmp_path):
    stand_ins.write_pictures(BENCHMARKS["PACS"], tmp_path, 64)
    dataset = host.datasets.PACS(str(tmp_path), [0], host.hparams_registry.default_hparams("ERM", "PACS"))
    assert [len(environment) for environment in dataset] == [stand_ins.IMAGES] * 4
    assert dataset.num_classes == 7 and dataset[1][0][0].shape == (3, 224, 224)


def test_what_is_missing_is_replaced_and_told(monkeypatch):
    """Data, diffusion model and backbone weights; the folders are gone afterwards."""
    monkeypatch.setattr(stand_ins, "ldm_is_here", lambda hparams: False)
    hparams = {**host.hparams_registry.default_hparams("DomainFusion", "PACS"), "backbone": "resnet50"}
    args = {"dataset": "PACS", "algorithm": "DomainFusion", "test_envs": [0], "holdout_fraction": 0.2, "data_dir": "d"}
    made = counting.count(args, hparams, BENCHMARKS["PACS"].images)
    with ExitStack() as stack:
        replaced = StandIns({"PACS": Data(BENCHMARKS["PACS"].images, True)}, stack)
        spec = replaced.spec(made, [made])
        check_folder(Path(spec["hparams"]["ldm"]))
        assert Path(spec["data_dir"], "PACS").is_dir() and spec["random_ldm"]
        assert spec["hparams"]["pretrained"] is False and made.hparams["pretrained"] is True
        assert replaced.spec(made, [made])["hparams"] == spec["hparams"]  # one folder for all
    assert not Path(spec["hparams"]["ldm"]).exists() and not Path(spec["data_dir"]).exists()
    assert [note.split(" is not ")[0] for note in replaced.notes] == [
        "PACS: the folder PACS",
        "CompVis/stable-diffusion-v1-4",
    ]


# the calibration


@pytest.fixture
def spec(tiny_dataset, host_run):
    hparams = {**host.hparams_registry.default_hparams("ERM", "DigitStyles"), "batch_size": 4, "backbone": "mnist_cnn"}
    return {
        "dataset": "TinyDigits",
        "data_dir": None,
        "algorithm": "ERM",
        "test_envs": [0],
        "holdout_fraction": 0.2,
        "hparams": hparams,
        "random_ldm": False,
        "repeated": 0.1,
        "started": time.time(),
    }


def test_a_slow_algorithm_is_measured_as_slow(monkeypatch, spec):
    """Lower bounds only: a step that sleeps 30 ms takes that, an evaluated image 1 ms."""

    class Slow(host.algorithms.ERM):
        def update(self, minibatches, unlabeled=None):
            time.sleep(0.03)
            return super().update(minibatches, unlabeled)

        def predict(self, x):
            time.sleep(0 if self.training else 0.001 * len(x))
            return super().predict(x)

    monkeypatch.setattr(host.algorithms, "Slow", Slow, raising=False)
    measured = measure.Calibration({**spec, "algorithm": "Slow"}).measure()
    assert measured["step"] >= 0.03 and measured["evaluated"] >= 0.001
    assert measured["model_bytes"] > 4 * sum(p.numel() for p in Slow((3, 32, 32), 4, 2, spec["hparams"]).parameters())


def test_minibatches_that_wait_in_loader_processes(monkeypatch, spec):
    """By hand: in-splits of 16, 17 and 18 images, out-splits of 4, all of them smaller than an evaluation batch."""
    monkeypatch.setattr(host.datasets.TinyDigits, "N_WORKERS", 2)
    loader = torch.utils.data.DataLoader([0], num_workers=1)
    images = 2 * 4 + (16 + 17 + 18) + 3 * 4
    result = measure.Calibration(spec).result
    assert result["loader_processes"] == 2 * (2 + 6)
    assert result["prefetched_bytes"] == loader.prefetch_factor * 2 * images * 3 * 32 * 32 * 4


def test_generation_and_ld_are_measured_by_the_run_itself(monkeypatch, spec, tiny_ldm):
    """Per image kept, and per image and draw: a candidate that sleeps 5 ms, an LD gradient that sleeps 3 ms."""
    from domainbed_domainfusion.diffusion.candidates import CandidateSampler
    from domainbed_domainfusion.diffusion.distillation import LatentDistillation

    sample, coefficients = CandidateSampler.sample, LatentDistillation.coefficients

    def slow_sample(self, images, labels, seeds):
        time.sleep(0.005 * len(images) * len(seeds[0]))
        return sample(self, images, labels, seeds)

    def slow_coefficients(self, images, *arguments):
        time.sleep(0.003 * len(images) * self.draws)
        return coefficients(self, images, *arguments)

    monkeypatch.setattr(CandidateSampler, "sample", slow_sample)
    monkeypatch.setattr(LatentDistillation, "coefficients", slow_coefficients)
    hparams = {
        **host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"),
        "ldm": tiny_ldm,
        "batch_size": 4,
        "backbone": "mnist_cnn",
        "candidates": 3,
        "denoising_steps": 2,
        "ld_draws": 2,
        "generation_batch": 4,
    }
    for slow_encode in (measure.SLOW_ENCODE, 0.0):  # whole batches, and few images extrapolated
        monkeypatch.setattr(measure, "SLOW_ENCODE", slow_encode)
        measured = measure.Calibration({**spec, "algorithm": "DomainFusion", "hparams": dict(hparams)}).measure()
        assert (measured["few_images"] > 0) == (slow_encode == 0)
        assert measured["kept"] >= 0.015 and measured["ld_gradient"] >= 0.003


@pytest.mark.parametrize("seconds, expected", [((0.5, 0.8), 0.2 + 8 * 0.3), ((0.5, 0.4), 0.2), ((0.1, 0.2), 0.0)])
def test_a_hiccup_makes_no_time_negative(monkeypatch, spec, tiny_ldm, seconds, expected):
    """One candidate at one and at two steps, 0.3 s of it its source's encoding; nine evaluations without guidance."""
    hparams = {
        **host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"),
        "ldm": tiny_ldm,
        "backbone": "mnist_cnn",
        "batch_size": 4,
        "guidance_scale": 1.0,
    }
    run = measure.Calibration({**spec, "algorithm": "DomainFusion", "hparams": hparams})
    run.algorithm.load_diffusion(run.device)
    taken = list(seconds)
    monkeypatch.setattr(run, "_seconds", lambda call: taken.pop(0))
    found = run._candidate(hparams, torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), 0.3, 1)
    assert found == pytest.approx(expected)


def test_the_whole_estimate(monkeypatch, tmp_path, capsys, tiny_ldm):
    """Stdout is one JSON object, although a dataset without class names makes the algorithm print; nothing is left."""
    monkeypatch.setattr(calibration, "SECONDS", 0.1)
    hparams = {"ldm": tiny_ldm, "batch_size": 4, "denoising_steps": 3, "generation_interval": 1, "ld_images": 2}
    cli.main(
        [
            "estimate",
            "launch",
            "--algorithms",
            "DomainFusion",
            "--datasets",
            "Debug28",
            "--single_test_envs",
            "--n_hparams",
            "1",
            "--n_trials",
            "1",
            "--steps",
            "5",
            "--command_launcher",
            "local",
            "--data_dir",
            "unused",
            "--output_dir",
            str(tmp_path / "sweep"),
            "--hparams",
            json.dumps(hparams),
            "--json",
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "sweep").exists()
    (ours,) = result["groups"]
    # in-splits of 13 images: an epoch is 3.25 steps, so rounds at steps 0 and 4
    assert (ours["jobs"], ours["kept"], ours["candidates"]) == (3, 3 * 2 * 26, 3 * 2 * 26 * 3)
    assert (ours["ld_gradients"], ours["evaluated"]) == (3 * 5 * 2, 3 * 2 * 48)
    assert all(ours["seconds"][part] > 0 for part in tables.PARTS)
    assert result["disk_bytes"] > 3 * ours["rates"][0]["model_bytes"]
    assert ours["rates"][0]["imports"] < result["wall_clock_seconds"]


def test_what_is_printed():
    """Numbers by hand: two jobs of 40 s, of which generation 8640 s would be a tenth of a day."""
    made = counting.Job(
        {"dataset": "PACS", "algorithm": "DomainFusion"},
        {},
        steps=1000,
        checkpoints=3,
        evaluated=29973,
        rounds=2,
        kept=8000,
        candidates=24000,
        ld_gradients=48000,
        domains=3,
    )
    point = calibration.Measured(
        [
            (
                made,
                rates(
                    ram_bytes=2**31,
                    device="cpu",
                    threads=2,
                    few_images=1,
                    loader_processes=88,
                    prefetched_bytes=3 * 2**30,
                ),
            )
        ]
    )
    part = costs.Seconds(10, 3600, 43200, 7200, 720, 1)
    result = Estimate(
        "local",
        [made, made],
        [part, part],
        1,
        {"PACS": Data((1, 2), True)},
        calibration.Conditions(({},)),
        [point, point],
        part.total * 2,
        2**31,
        2**30,
        ["A note."],
    )
    text = tables.as_text(result)
    assert "2 jobs to launch; 1 more are done or begun" in text
    assert "a job has 88 loader processes, with 3.0 GiB of waiting minibatches" in text
    assert "PACS: 3 images in 2 environments (published sizes)" in text
    lines = {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in text.splitlines() if "  " in line}
    assert lines["PACS DomainFusion, 2 jobs here"] == ["0.00", "1.00", "1.00", "48,000"]
    assert lines["PACS DomainFusion, one job here"] == ["0.00", "0.50", "0.50", "24,000"]
    assert lines["PACS DomainFusion, the paper's images here"] == ["0.00", "2.50", "2.50", "120,000"]
    assert lines["DSI, published (DomainNet, V100)"] == ["22.44", "7.94", "30.38", "244k"]
    assert "30.4 h with local, 1 at a time" in text and text.endswith("A note.")
    assert json.dumps(tables.as_json(result))


def test_a_calibration_that_fails_names_the_reason(tmp_path, capsys):
    with pytest.raises(InputError, match="The calibration of ERM on Debug28 failed: .*batch_size 20: lower it"):
        cli.run(
            ["estimate", "--algorithms", "ERM", "--datasets", "Debug28", "--hparams", '{"batch_size": 20}', *REQUIRED]
        )


def test_digit_styles_is_counted_from_its_class(tmp_path):
    assert digit_styles_class(host.datasets.MultipleDomainDataset).N_STEPS == 301
    args = {"dataset": "DigitStyles", "algorithm": "ERM", "test_envs": [0], "holdout_fraction": 0.2}
    assert counting.count(args, {"batch_size": 16}, [1500] * 4).evaluated == 3 * 6000  # steps 0, 150, 300
