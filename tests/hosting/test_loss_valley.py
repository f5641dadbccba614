"""SWAD: the steps that it averages, against the paper's Algorithm 1 in loops, and inside the host's train script."""

import json
import random
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F

from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.hosting.loss_valley import LossValley


def first_and_last(losses, converge, tolerance, ratio):
    """The evaluations at which the valley begins and ends; None before it begins. From the paper's Algorithm 1."""
    first = level = None
    for i in range(len(losses)):
        if first is None:
            window = losses[i - converge + 1 : i + 1] if i >= converge - 1 else []
            if window and window[0] == min(window):
                first, level = i - converge + 1, ratio * sum(window) / converge
        elif i >= tolerance - 1 and min(losses[i - tolerance + 1 : i + 1]) > level:
            return first, i - tolerance
    return None if first is None else (first, len(losses) - 1)


@pytest.mark.parametrize(
    "converge, tolerance, ratio", [(3, 6, 1.3), (2, 2, 1.0), (1, 3, 1.2), (4, 2, 1.0), (3, 3, 1.1)]
)
def test_it_averages_the_papers_steps(converge, tolerance, ratio):
    """At each evaluation of 60 made-up runs, with segments of different lengths."""
    endings = set()
    for seed in range(60):
        draw = random.Random(seed)
        bottom = draw.randint(0, 6)
        valley, weights, ends, losses = LossValley(converge, tolerance, ratio), [], [], []
        for evaluation in range(16):
            for _ in range(draw.randint(1, 3)):
                weights.append(torch.tensor([draw.gauss(0, 1), draw.gauss(0, 1)], dtype=torch.float64))
                valley.add({"w": weights[-1]})
            ends.append(len(weights))
            losses.append(1 + 0.15 * abs(evaluation - bottom) + draw.uniform(0, 0.3))
            valley.close(losses[-1])
            found = first_and_last(losses, converge, tolerance, ratio)
            if found is None:
                assert valley.values == {}
                continue
            first, last = found
            expected = torch.stack(weights[ends[first - 1] if first else 0 : ends[last]]).mean(0)
            torch.testing.assert_close(valley.values["w"], expected, rtol=0, atol=1e-12)
        endings.add((found is not None, found is not None and found[1] < 15))
    assert {(True, True)} <= endings


def test_train_evaluates_and_saves_the_valleys_mean(monkeypatch, tmp_path, as_script):
    """The raw weights are those of the run without an average; their losses are computed here, on the host's splits."""
    monkeypatch.setattr(host.datasets.MultipleDomainDataset, "N_WORKERS", 0)
    models, lines = {}, {}
    for kind in ("none", "swad"):
        hparams = {"weight_average": kind, "swad_converge": 2, "swad_tolerance": 2, "swad_ratio": 1.0}
        as_script("train", *("--dataset", "Debug28", "--algorithm", "ERM", "--output_dir", str(tmp_path / kind)),
                  *("--steps", "9", "--checkpoint_freq", "1", "--save_model_every_checkpoint", "--test_envs", "1"),
                  *("--hparams", json.dumps({**hparams, "batch_size": 8, "lr": 0.02})))  # fmt: skip
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
        files = {path.stem: path for path in (tmp_path / kind).glob("*.pkl")}
        models[kind] = {name: torch.load(path, weights_only=False)["model_dict"] for name, path in files.items()}
        lines[kind] = [json.loads(line) for line in (tmp_path / kind / "results.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines["swad"]] == [line["loss"] for line in lines["none"]]

    run, misc = context.current(), host.lib.misc
    dataset = run.dataset
    outer = [misc.split_dataset(dataset[i], int(len(dataset[i]) * 0.2), misc.seed_hash(0, i))[0] for i in (0, 2)]
    x, y = (torch.stack([torch.as_tensor(pair[k]) for split in outer for pair in split]) for k in (0, 1))
    read = [image.numpy().tobytes() for loader in run.validation_loaders for images, _ in loader for image in images]
    assert sorted(read) == sorted(image.numpy().tobytes() for image in x)  # the host's loaders shuffle
    values = {**host.hparams_registry.default_hparams("ERM", "Debug28")}
    losses = []
    steps = [models["none"][f"model_step{step}"] for step in range(9)]
    for state in steps:
        plain = host.algorithms.ERM(dataset.input_shape, dataset.num_classes, 2, values)
        plain.load_state_dict(state)
        losses.append(F.cross_entropy(plain.eval().predict(x), y).item())
    last_found = None
    for step in range(9):
        found = first_and_last(losses[: step + 1], 2, 2, 1.0)
        first, last = found if found else (step, step)
        for name, weight in models["swad"][f"model_step{step}"].items():
            mean = torch.stack([state[name] for state in steps[first : last + 1]]).mean(0)
            torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
        last_found = found
    assert last_found is not None and last_found[0] < last_found[1]
