"""Run one host and write down what it does, as JSON: `python observe.py PACKAGE OUTPUT [--everything]`.

PACKAGE is `domainbed` or `domainbed_domainfusion.minibed`; both are driven only through the names and command lines
that they share. `record` keeps what the real DomainBed does, the tests and `tests.upstream.parity` compare.
--everything adds what needs an attached DomainBed: our algorithms and dataset, and 224-pixel images with a ResNet.
"""

import contextlib
import importlib
import io
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DATASETS = ("Debug28", "Debug224", "RotatedMNIST", "VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")
ALGORITHMS = ("ERM",)
SEEDS = range(20)
TRAIN = (
    "--dataset",
    "Debug28",
    "--algorithm",
    "ERM",
    "--steps",
    "7",
    "--checkpoint_freq",
    "3",
    "--test_envs",
    "1",
    "--hparams",
    '{"batch_size": 4}',
    "--seed",
    "5",
    "--trial_seed",
    "1",
)
ADAPTATION = (
    "--dataset",
    "Debug28",
    "--algorithm",
    "ERM",
    "--steps",
    "3",
    "--checkpoint_freq",
    "1",
    "--test_envs",
    "0",
    "--hparams",
    '{"batch_size": 4, "class_balanced": true, "nonlinear_classifier": true}',
    "--hparams_seed",
    "3",
    "--task",
    "domain_adaptation",
    "--uda_holdout_fraction",
    "0.4",
)
RESNET = (
    "--dataset",
    "PACS",
    "--algorithm",
    "ERM",
    "--steps",
    "2",
    "--checkpoint_freq",
    "1",
    "--test_envs",
    "3",
    "--hparams_seed",
    "1",
    "--hparams",
    '{"batch_size": 2, "resnet18": true, "resnet50_augmix": false, "freeze_bn": true}',
)
OURS = ("SAM", "DomainFusion")
SWEEPS = (
    {
        "n_trials": 2,
        "dataset_names": ["Debug28"],
        "algorithms": ["ERM"],
        "n_hparams_from": 0,
        "n_hparams": 2,
        "steps": 3,
        "data_dir": "some data",
        "task": "domain_generalization",
        "holdout_fraction": 0.2,
        "single_test_envs": False,
        "hparams": '{"lr": 0.1}',
    },
    {
        "n_trials": 1,
        "dataset_names": ["DomainNet"],
        "algorithms": ["ERM"],
        "n_hparams_from": 1,
        "n_hparams": 3,
        "steps": None,
        "data_dir": "/data",
        "task": "domain_generalization",
        "holdout_fraction": 0.1,
        "single_test_envs": True,
        "hparams": None,
    },
)


def seed_hashes(host):
    """[tuple, hash], for tuples of the kinds that the protocol hashes."""
    identities = [(trial, env) for trial in range(5) for env in range(10)]
    identities += [(0,), ("lr", 3), ("PACS", "ERM", [0, 1], 2, 0)]
    return [[identity, host("lib.misc").seed_hash(*identity)] for identity in identities]


def splits(host):
    """The held-out indices of environments of several sizes, for the seeds that train uses."""
    misc = host("lib.misc")
    kept = []
    for size in (5, 16, 53):
        for trial, env in ((trial, env) for trial in range(3) for env in range(4)):
            data = list(range(size))
            outer, inner = misc.split_dataset(data, int(size * 0.2), misc.seed_hash(trial, env))
            kept.append([size, trial, env, *([part[i] for i in range(len(part))] for part in (outer, inner))])
    return kept


def hparams(host, algorithms=ALGORITHMS, datasets=DATASETS):
    """{algorithm: {dataset: {name: [default, draw for seed 0, …]}}}"""
    registry = host("hparams_registry")

    def columns(algorithm, dataset):
        default = registry.default_hparams(algorithm, dataset)
        draws = [registry.random_hparams(algorithm, dataset, seed) for seed in SEEDS]
        return {name: [default[name], *(draw[name] for draw in draws)] for name in sorted(default)}

    return {algorithm: {dataset: columns(algorithm, dataset) for dataset in datasets} for algorithm in algorithms}


def jobs(host):
    """Arguments, folder and command of each job of SWEEPS. The command is given from after the module's name."""
    sweep = host("scripts.sweep")
    args_lists = [sweep.make_args_list(**settings) for settings in SWEEPS]
    made = [sweep.Job(args, "sweep folder") for args_list in args_lists for args in args_list]
    return [
        [job.train_args, job.output_dir, job.command_str.split(".scripts.train ")[1], job.state, str(job)]
        for job in made
    ]


def constants(host):
    """The constants of the dataset classes, which need no data."""
    datasets = host("datasets")
    found = {}
    for name in DATASETS:
        if name != "RotatedMNIST":
            dataset = datasets.get_dataset_class(name)
            found[name] = [
                dataset.ENVIRONMENTS,
                dataset.N_STEPS,
                dataset.CHECKPOINT_FREQ,
                dataset.N_WORKERS,
                datasets.num_environments(name),
            ]
    return found


def featurizers(host, sizes=(28, 32)):
    """Names, shapes and float64 sums of the initial parameters and buffers, and of the features of one random batch."""
    networks, registry = host("networks"), host("hparams_registry")
    shown = {}
    for size in sizes:
        torch.manual_seed(size)
        network = networks.Featurizer((3, size, size), registry.default_hparams("ERM", "Debug28"))
        features = network(torch.randn(2, 3, size, size))
        state = {**network.state_dict(), "features": features.detach(), "next": torch.rand(3)}
        shown[str(size)] = [
            [name, list(value.shape), value.double().sum().item(), value.double().abs().sum().item()]
            for name, value in state.items()
        ] + [["n_outputs", [], network.n_outputs, 0.0]]
    return shown


def run_script(package, name, *arguments):
    """Run `python -m PACKAGE.scripts.NAME ARGUMENTS` in this process; what it printed."""
    printed, streams, argv = io.StringIO(), (sys.stdout, sys.stderr), sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_module(f"{package}.scripts.{name}", run_name="__main__", alter_sys=True)
    finally:
        (sys.stdout, sys.stderr), sys.argv = streams, argv
    return printed.getvalue()


def training(package, host, arguments):
    """The results lines, the files written and the layout of model.pkl; loaders without worker processes, for speed."""
    host("datasets").MultipleDomainDataset.N_WORKERS = 0
    with tempfile.TemporaryDirectory() as folder:
        run_script(package, "train", *arguments, "--output_dir", folder)
        rows = [json.loads(line) for line in Path(folder, "results.jsonl").read_text().splitlines()]
        for row in rows:
            del row["args"]["output_dir"], row["step_time"]
        model = torch.load(Path(folder, "model.pkl"), weights_only=False)
        weights = [[name, list(value.shape)] for name, value in model.pop("model_dict").items()]
        del model["args"], model["model_hparams"]
        return {
            "rows": rows,
            "files": sorted(os.listdir(folder)),
            "done": Path(folder, "done").read_text(),
            "model": model,
            "weights": weights,
        }


def write_sweep(folder):
    """A made-up sweep: two datasets, trials and hparams seeds, one and two test environments, gaps and ties in it."""
    random = np.random.RandomState(0)
    envs = {"Debug28": 3, "PACS": 4}
    chosen = [
        (dataset, trial, seed, sorted({i, j}))
        for dataset, n in envs.items()
        for trial in range(2)
        for seed in range(2)
        for i in range(n)
        for j in range(i, n)
        if not (dataset == "PACS" and trial == 1 and 3 in (i, j))
    ]
    for number, (dataset, trial, seed, test_envs) in enumerate(chosen):
        job = Path(folder, f"{number:03d}")
        job.mkdir()
        lines = []
        for step in (0, 300, 600):
            accuracies = {
                f"env{i}_{split}_acc": round(float(random.uniform(0.2, 1)), 1)
                for i in range(envs[dataset])
                for split in ("in", "out")
            }
            args = {
                "dataset": dataset,
                "algorithm": "ERM",
                "test_envs": test_envs,
                "trial_seed": trial,
                "hparams_seed": seed,
                "output_dir": f"sweep/{number:03d}",
                "holdout_fraction": 0.2,
            }
            hparams = {"lr": 10.0**-seed, "n": seed}
            lines.append(json.dumps({"step": step, **accuracies, "args": args, "hparams": hparams}))
        Path(job, "results.jsonl").write_text("\n".join(lines) + "\n")


def tables(package):
    """What collect_results (both forms) and list_top_hparams print for the made-up sweep, and what they write."""
    with tempfile.TemporaryDirectory() as folder:
        write_sweep(folder)
        top = ("--dataset", "PACS", "--algorithm", "ERM", "--test_env", "0")
        return {
            "text": run_script(package, "collect_results", "--input_dir", folder),
            "latex": run_script(package, "collect_results", "--input_dir", folder, "--latex"),
            "written": [Path(folder, name).read_text() for name in ("results.txt", "results.tex")],
            "top_hparams": run_script(package, "list_top_hparams", "--input_dir", folder, *top),
        }


def write_pacs(folder):
    """Random images in PACS's layout: four environments, two classes, five each."""
    random = np.random.RandomState(0)
    for env in ("art_painting", "cartoon", "photo", "sketch"):
        for name in ("dog", "person"):
            Path(folder, "PACS", env, name).mkdir(parents=True)
            for i in range(5):
                pixels = random.randint(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((90, 80)).save(Path(folder, "PACS", env, name, f"{i}.png"))


def with_ours(package, host):
    """What needs an attached checkout and weights: our algorithms' hparams, SAM on random data, PACS at 224 pixels."""
    seen = {"hparams of ours": hparams(host, OURS, (*DATASETS, "DigitStyles")), "ResNet-50": featurizers(host, (224,))}
    with tempfile.TemporaryDirectory() as folder:
        write_pacs(folder)
        seen["PACS, ResNet-18"] = training(package, host, (*RESNET, "--data_dir", folder))
        for row in seen["PACS, ResNet-18"]["rows"]:
            del row["args"]["data_dir"]
    seen["SAM"] = training(package, host, (*TRAIN, "--algorithm", "SAM"))
    return seen


def observe(package, everything=False):
    """All sections for one host."""

    def host(name):
        return importlib.import_module(f"{package}.{name}")

    host("algorithms")
    seen = {
        "seed_hash": seed_hashes(host),
        "splits": splits(host),
        "hparams": hparams(host),
        "jobs": jobs(host),
        "constants": constants(host),
        "featurizers": featurizers(host),
        "tables": tables(package),
    }
    seen["train"] = [training(package, host, TRAIN), training(package, host, ADAPTATION)]
    if everything:
        seen.update(with_ours(package, host))
    return json.loads(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # os.listdir gives the file system's order. It is sorted here, so that the tables do not depend on it.
    listdir = os.listdir
    os.listdir = lambda *path: sorted(listdir(*path))
    Path(sys.argv[2]).write_text(json.dumps(observe(sys.argv[1], everything="--everything" in sys.argv)))
