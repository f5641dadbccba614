"""DomainFusion with loader worker processes (N_WORKERS > 0), as in every run on real data."""

import contextlib
import os
import time
from pathlib import Path

import pytest
import torch

from domainbed_domainfusion import pixels
from domainbed_domainfusion.generated.dataset import PREFETCHED, GenerateDataset
from domainbed_domainfusion.generated.generation import Generated
from domainbed_domainfusion.hosting import context, host

from ..conftest import TinyDigits

WORKERS, DOMAINS = 2, 2


class WorkedDigits(TinyDigits):
    N_WORKERS = WORKERS


def children() -> set[int]:
    """The ids of this process's living child processes."""
    found = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@pytest.fixture
def loaders():
    """The host's training loaders over two in-splits, with worker processes, as its train script builds them."""
    before = children()

    def make(algorithm: str, **hparams):
        torch.manual_seed(0)
        dataset = WorkedDigits(None, [0], {})
        misc = host.lib.misc
        splits = [misc.split_dataset(env, 4, misc.seed_hash(0, i))[1] for i, env in enumerate(dataset)]
        loader = host.module("lib.fast_data_loader").InfiniteDataLoader
        training = [loader(split, None, 4, WORKERS) for split in splits[1:]]
        values = {**host.hparams_registry.default_hparams(algorithm, "DigitStyles"), "batch_size": 4}
        values.update({"backbone": "mnist_cnn", **hparams})
        built = host.algorithms.get_algorithm_class(algorithm)((3, 32, 32), 4, DOMAINS, values)
        return zip(*training), built, context.current()

    yield make
    context._current = context.TrainingContext()
    deadline = time.time() + 30
    while children() - before and time.time() < deadline:
        time.sleep(0.1)
    assert not children() - before, "loader workers were left behind"


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are counted in /proc")


@needs_proc
def test_a_run_has_two_sets_of_workers_however_many_rounds_it_has(loaders, tiny_ldm):
    before = children()
    minibatches, ours, _ = loaders(
        "DomainFusion", ldm=tiny_ldm, denoising_steps=2, generation_interval=1, gallery=0, lambda2=0.0
    )
    assert len(children() - before) == DOMAINS * WORKERS
    rounds = []
    for _ in range(10):
        ours.update(next(minibatches))
        rounds.append(ours.generate_dataset.rounds)
        assert len(children() - before) == 2 * DOMAINS * WORKERS
    assert rounds[-1] == 3
    del minibatches, ours


@needs_proc
def test_raw_minibatches_are_erms(loaders, tiny_ldm):
    seen = []
    for algorithm in ("ERM", "DomainFusion"):
        hparams = {} if algorithm == "ERM" else {"ldm": tiny_ldm, "denoising_steps": 2, "generation_interval": 1}
        minibatches, built, _ = loaders(algorithm, **({**hparams, "gallery": 0, "lambda2": 0.0} if hparams else {}))
        batches = []
        for _ in range(6):
            batch = next(minibatches)
            batches += [tensor for pair in batch for tensor in pair]
            built.update(batch)
        seen.append(batches)
        del minibatches, built
    assert all(torch.equal(a, b) for a, b in zip(*seen))


@needs_proc
def test_no_minibatch_after_a_round_is_from_before_it(loaders):
    """Loader workers fetch ahead. Nevertheless every generated image after a round carries that round's mark."""
    minibatches, _, run = loaders("ERM")

    def marked(x, y, seeds, shared):
        none = torch.zeros(len(x), dtype=torch.long)
        return Generated(torch.full_like(x, number / 10), none, none)

    pixel_range = pixels.PixelRange((3, 32, 32))
    store = GenerateDataset(run.in_splits, 32, pixel_range, seed=0, budget=0, candidates=1, workers=WORKERS)
    step = 0
    for number in (1, 2, 3):
        store.refresh(step, marked, 8)
        for _ in range(2 * PREFETCHED * WORKERS):
            x, _, _ = store.minibatch(step)
            assert (x * 2 - 1 - number / 10).abs().max() < 0.01, f"round {number}, step {step}"
            step += 1
    del store, minibatches
