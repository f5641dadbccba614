"""R7's counts: against a loop that plays the runs one by one, the files of a real folder, and a real run's images."""

import json
import random

from benchmarks import sweep
from benchmarks.models import opened
from domainbed_domainfusion.generated.candidate_cache import CandidateCache


def test_work_is_what_a_loop_does():
    draw = random.Random(0)
    runs = [
        sweep.Run(
            draw.choice([1, 3, 5]),
            frozenset((draw.randrange(2), draw.randrange(9)) for _ in range(7)),
            draw.choice([0, 1, 4]),
            draw.randrange(5),
        )
        for _ in range(12)
    ]
    assert {each.rounds for each in runs} == {0, 1, 4}
    folder, made, taken = set(), 0, 0
    for each in runs:
        for number in range(each.rounds):
            for candidate in ((image, j) for image in each.images for j in range(each.candidates)):
                if number == 0 and candidate in folder:
                    taken += 1
                    continue
                made += 1
                folder |= {candidate} if number == 0 else set()
    shared, alone = sweep.work(runs, shared=True), sweep.work(runs, shared=False)
    assert (shared.made, shared.taken) == (made, taken) and taken > 0
    assert (alone.made, alone.taken) == (made + taken, 0)
    assert shared.first == alone.first == len(folder) + taken
    assert shared.ld_gradients == alone.ld_gradients == sum(each.ld_gradients for each in runs)


def test_the_small_sweep_makes_what_is_counted(monkeypatch):
    """Entries of its folder and hits, two trials and two test environments."""
    monkeypatch.setattr(sweep, "SMALL", [(0, 3, 3), (0, 2, 5), (1, 3, 3)])
    found, entries = [], set()
    read = CandidateCache._read

    def spy(self, path):
        entries.add(path)
        found.append(read(self, path))
        return found[-1]

    monkeypatch.setattr(CandidateCache, "_read", spy)
    with opened("tiny") as model:
        runs, seconds = sweep.small_sweep(model, "float32", "cpu", shared=True)
    counted = sweep.work(runs, shared=True)
    assert counted.taken == sum(latents is not None for latents in found) > 0
    assert counted.first == len(found) and counted.first - counted.taken == len(entries)
    assert all(each > 0 for each in seconds)


def test_a_counted_run_has_a_real_runs_images(host_run, tiny_ldm, tiny_dataset):
    hparams = {
        "ldm": tiny_ldm,
        "generation_budget": 6,
        "generation_interval": 1,
        "denoising_steps": 2,
        "gallery": 0,
        "ld_images": 2,
        "batch_size": 4,
        "candidates": 2,
    }
    run = host_run("DomainFusion", 1, **hparams)
    run.update(5)
    dataset = run.algorithm.generate_dataset
    args = {
        "dataset": "TinyDigits",
        "algorithm": "DomainFusion",
        "test_envs": [1],
        "holdout_fraction": 0.2,
        "hparams_seed": 0,
        "trial_seed": 0,
        "seed": 0,
        "steps": 5,
        "hparams": json.dumps(hparams),
    }
    counted = sweep._counted(args, [len(environment) for environment in run.dataset])
    keys = {(dataset.in_splits[split].environment, index) for split, index in dataset.keys}
    assert counted == sweep.Run(2, frozenset(keys), dataset.rounds, 5 * 2) and len(keys) == 6 and dataset.rounds == 2
