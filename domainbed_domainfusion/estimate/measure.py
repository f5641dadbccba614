"""The calibration itself, in a process of its own: `python -m domainbed_domainfusion.estimate.measure SPEC`.

It builds what the host's train script builds, from the host's own parts, and times each part of a run for a few
seconds: a step, an evaluated image, a generated image, an LD gradient. It prints them as one JSON line, and then goes
on training until its standard input is closed, so that its neighbours are measured on a busy machine, as jobs are.
"""

import itertools
import json
import math
import resource
import select
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import exit_status

EVALUATION_BATCH = 64  # the host's
PREFETCHED = 2  # minibatches of each loader process, torch's default
SLOW_ENCODE = 0.1  # seconds of one image's encoding from which on generation and LD are measured on few images: on as
ENCODED = 1.0  # many as are encoded in this many seconds, at least one


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # where a dataset or an algorithm may print what it likes
    calibration = Calibration(json.loads(sys.argv[1]))
    print(json.dumps(calibration.measure()), file=answers, flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        calibration.step()
    print(json.dumps({"ended": time.time()}), file=answers, flush=True)


class Calibration:
    """One run as the host's train script builds it. `spec` is what `calibration.calibrate` sends."""

    def __init__(self, spec: dict[str, Any]):
        import torch

        from ..hosting import host

        algorithm = host.algorithms.get_algorithm_class(spec["algorithm"])  # imports the host, which registers us
        from ..stopwatch import Stopwatch

        self.result = {"imports": time.time() - spec["started"], "warm_up": 0.0}
        self.hparams, self.repeated = spec["hparams"], spec["repeated"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stopwatch = lambda: Stopwatch(self.device)
        dataset = host.datasets.get_dataset_class(spec["dataset"])(spec["data_dir"], spec["test_envs"], self.hparams)
        misc, loaders = host.lib.misc, host.module("lib.fast_data_loader")
        splits = [
            misc.split_dataset(env, int(len(env) * spec["holdout_fraction"]), misc.seed_hash(0, i))
            for i, env in enumerate(dataset)
        ]
        batch_size, workers = self.hparams["batch_size"], dataset.N_WORKERS
        training = [
            loaders.InfiniteDataLoader(in_split, None, batch_size, workers)
            for i, (_, in_split) in enumerate(splits)
            if i not in spec["test_envs"]
        ]
        # Of the evaluation loaders one is enough: the others' processes would only wait, each in its own memory.
        self.evaluation = loaders.FastDataLoader(splits[0][0], EVALUATION_BATCH, workers)
        self.result["loader_processes"] = workers * (len(training) + 2 * len(splits))
        minibatches = batch_size * len(training) + sum(
            min(EVALUATION_BATCH, len(part)) for both in splits for part in both
        )
        self.result["prefetched_bytes"] = PREFETCHED * workers * minibatches * 4 * math.prod(dataset.input_shape)
        self.minibatches = zip(*training)
        self.algorithm = algorithm(dataset.input_shape, dataset.num_classes, len(training), self.hparams)
        self.algorithm.to(self.device)
        self.result["startup"] = time.time() - spec["started"]
        self.random_ldm = spec["random_ldm"]

    def measure(self) -> dict[str, Any]:
        """The fields of `calibration.Rates`, but for `ended`."""
        from ..algorithms.domainfusion import DomainFusion

        self._evaluation()
        if isinstance(self.algorithm, DomainFusion):
            self._domainfusion()
        else:
            self.result["raw_step"] = self.result["step"] = self._mean(self.step)
        self._saving()
        self._memory()
        return self.result

    def step(self) -> dict[str, float]:
        """One training step, the wait for its minibatches included."""
        minibatches = [(x.to(self.device), y.to(self.device)) for x, y in next(self.minibatches)]
        return self.algorithm.update(minibatches, None)

    def _mean(self, call: Callable[[], Any]) -> float:
        """Seconds a call. The first is a warm-up, which a run pays once too, unless it already takes long enough."""
        first = self._seconds(call)
        if first >= self.repeated:
            return first
        seconds: list[float] = []
        while sum(seconds) < self.repeated:
            seconds.append(self._seconds(call))
        mean = sum(seconds) / len(seconds)
        self.result["warm_up"] += max(0.0, first - mean)
        return mean

    def _seconds(self, call: Callable[[], Any]) -> float:
        with self.stopwatch() as watch:
            call()
        return watch.seconds

    def _evaluation(self) -> None:
        from ..hosting import host

        batches = itertools.chain.from_iterable(itertools.repeat(self.evaluation))
        sizes = []

        def evaluate(most: int = EVALUATION_BATCH) -> None:
            x, y = next(batches)
            sizes.append(len(x[:most]))
            host.lib.misc.accuracy(self.algorithm, [(x[:most], y[:most])], None, self.device)

        one = self._seconds(lambda: evaluate(1))
        if one >= self.repeated:  # predicts with a diffusion model: a batch would take minutes
            self.result["evaluated"] = one
            return
        sizes.clear()
        seconds = self._mean(evaluate)
        self.result["evaluated"] = seconds / (sum(sizes[1:]) / len(sizes[1:]) if sizes[1:] else sizes[0])

    def _domainfusion(self) -> None:
        from ..hosting import context

        asked, hparams, algorithm = dict(self.hparams), self.algorithm.hparams, self.algorithm
        algorithm.step = 1
        hparams.update(updating=False, lambda2=0)  # no round of its own, and no LD yet
        if not algorithm.uses_diffusion:
            self.result["raw_step"] = self.result["step"] = self._mean(self.step)
            return
        hparams["generation_budget"] = max(asked["generation_batch"], len(context.current().in_splits))
        with self.stopwatch() as loading:
            algorithm.load_diffusion(self.device)
        self.result["load"] = loading.seconds
        if self.random_ldm:
            from ..diffusion.random_model import randomise

            randomise(algorithm.generation.sampler.ldm)
        encoding = self._encoding(asked["image_size"])
        few = max(1, int(ENCODED / encoding)) if encoding > SLOW_ENCODE else 0  # 0: whole batches
        self.result["few_images"] = few
        self.result["raw_step"] = self.result["step"] = self._mean(self.step)
        if algorithm.uses_generated:
            self._rounds(asked, encoding, few)
            self.result["step"] = self._mean(self.step)
        if asked["lambda2"] > 0:
            hparams["lambda2"] = asked["lambda2"]
            self._distillation(asked, few)

    def _encoding(self, size: int) -> float:
        """Seconds of one image through the VAE's encoder, the least of a few: it is subtracted from other times."""
        import torch

        images, ldm = torch.zeros(1, 3, size, size), self.algorithm.generation.sampler.ldm
        with torch.no_grad():
            return min(self._seconds(lambda: ldm.encode(images)) for _ in range(3))

    def _rounds(self, asked: dict[str, Any], encoding: float, few: int) -> None:
        """Generation per image kept; reading and storing it apart from the diffusion model's work."""
        import torch

        from ..generated.generation import Generated
        from ..pixels import from_store

        algorithm, dataset, generation = self.algorithm, self.algorithm.generate_dataset, self.algorithm.generation

        def unchanged(x: Any, y: Any, seeds: list, shared: bool) -> Generated:
            return Generated(x, torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long))

        batch = asked["generation_batch"]
        first = self._seconds(lambda: dataset.refresh(0, unchanged, batch))
        again = self._seconds(lambda: dataset.refresh(0, unchanged, batch))
        self.result["warm_up"] += max(0.0, first - again)  # the loaders are built once

        rows = range(min(batch, len(dataset.keys)))
        versions = [dataset.version(row) for row in rows]
        x = from_store(torch.stack([image for image, _ in versions]))
        y = torch.tensor([label for _, label in versions])
        algorithm.eval()
        candidates = generation.candidates
        if few:
            generating = encoding + candidates * self._candidate(asked, x[:1], y[:1], encoding, few)
        else:
            seeds = [[i * candidates + j for j in range(candidates)] for i in rows]
            generating = self._mean(lambda: generation(x, y, seeds)) / len(x)
        self.result["kept"] = again / len(dataset.keys) + generating
        algorithm.train()

    def _candidate(self, asked: dict[str, Any], x: Any, y: Any, encoding: float, few: int) -> float:
        """Seconds of a candidate without its source's encoding, from `few` of one source at one and two steps.

        Every further row (one image in one U-Net call) takes the same. All else is there once a candidate.
        """
        from ..diffusion.candidates import CandidateSampler
        from ..diffusion.prompted import PromptedModel
        from ..generated.generation import Generation

        real, points = self.algorithm.generation, []
        model = PromptedModel(real.sampler.ldm, real.sampler.prompts)
        for steps in (1, 2):
            hparams = {**asked, "denoising_steps": steps, "strength": 1.0, "guidance_interval": 1.0}
            generation = Generation(CandidateSampler.of(model, hparams), real.judge, hparams)
            seconds = self._seconds(partial(generation, x, y, [list(range(few))]))
            points.append((_rows(generation.sampler), max(0.0, seconds - encoding) / few))
        (low, first), (high, second) = points
        return first + (_rows(real.sampler) - low) * max(0.0, second - first) / (high - low)

    def _distillation(self, asked: dict[str, Any], few: int) -> None:
        """LD per gradient (image and draw), as `update` reports it; on a step's images, or on `few` of them."""
        from ..hosting import context

        hparams = self.algorithm.hparams
        hparams["ld_images"] = min(few, asked["ld_images"] or few) if few else asked["ld_images"]
        seconds: list[float] = []
        self._mean(lambda: seconds.append(self.step()["ld_seconds"]))
        seconds = seconds[1:] or seconds
        batch = hparams["batch_size"] * len(context.current().in_splits)
        images = min(hparams["ld_images"] or batch, batch)
        self.result["ld_gradient"] = sum(seconds) / len(seconds) / images / asked["ld_draws"]

    def _saving(self) -> None:
        import torch

        from ..files import write_atomically

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.pkl")
            with self.stopwatch() as saving:
                write_atomically(path, lambda name: torch.save(self.algorithm.state_dict(), name))
            self.result["saving"], self.result["model_bytes"] = saving.seconds, path.stat().st_size

    def _memory(self) -> None:
        import torch

        unit = 1 if sys.platform == "darwin" else 1024
        self.result["ram_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self.result["device"] = "cpu"
        if self.device.type == "cuda":
            self.result["device"] = torch.cuda.get_device_name(self.device)
            self.result["gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
        self.result["threads"] = torch.get_num_threads()


def _rows(sampler: Any) -> int:
    """Images through the U-Net for one candidate: two in a guided step."""
    return sampler.evaluations + sampler.guided


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(exit_status(main))
