"""The calibration itself, in a process of its own: `python -m domainbed_domainfusion.estimate.measure SPEC`.

It builds the same objects as the host's train script, from the host's own classes. It times each part of a run for a
few seconds: a step, an evaluated image, a generated image, an LD gradient. It prints the times as one JSON line. Then
it trains until its standard input is closed, so that the parallel calibrations are measured on a busy machine too.
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
PREFETCHED = 2  # minibatches that each loader worker fetches ahead, torch's default
#: If encoding one image takes longer (seconds), generation and LD are measured on few images instead of whole batches.
SLOW_ENCODE = 0.1
ENCODED = 1.0  # "few" is the number of images that are encoded in this many seconds, at least one


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # datasets and algorithms may print; stdout is for the answers
    calibration = Calibration(json.loads(sys.argv[1]))
    print(json.dumps(calibration.measure()), file=answers, flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        calibration.step()
    print(json.dumps({"ended": time.time()}), file=answers, flush=True)


class Calibration:
    """One run as the host's train script builds it. spec: see `calibration.calibrate`."""

    def __init__(self, spec: dict[str, Any]):
        import torch

        from ..hosting import host

        algorithm = host.algorithms.get_algorithm_class(spec["algorithm"])  # imports the host, which registers us
        from ..data.own_datasets import register_described
        from ..stopwatch import Stopwatch

        register_described(["--data_dir", str(spec["data_dir"])])
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
        # One evaluation loader is enough. The others would only take memory.
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
        """The fields of `calibration.Rates` except `ended`."""
        from ..algorithms.domainfusion import DomainFusion
        from ..algorithms.udim import UDIM

        self._evaluation()
        if isinstance(self.algorithm, DomainFusion):
            self._domainfusion()
        elif isinstance(self.algorithm, UDIM):
            self._udim(self.algorithm)
        else:
            self.result["raw_step"] = self.result["step"] = self._mean(self.step)
        self._saving()
        self._memory()
        return self.result

    def step(self) -> dict[str, float]:
        """One training step, including the wait for its minibatches."""
        minibatches = [(x.to(self.device), y.to(self.device)) for x, y in next(self.minibatches)]
        return self.algorithm.update(minibatches, None)

    def _mean(self, call: Callable[[], Any]) -> float:
        """Mean seconds per call, without the first one. The first call's extra time is added to the warm-up.

        If the first call takes `repeated` seconds or more, it is the only one.
        """
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
        if one >= self.repeated:  # a zero-shot algorithm: a whole batch would take minutes
            self.result["evaluated"] = one
            return
        sizes.clear()
        seconds = self._mean(evaluate)
        self.result["evaluated"] = seconds / (sum(sizes[1:]) / len(sizes[1:]) if sizes[1:] else sizes[0])

    def _udim(self, algorithm: Any) -> None:
        """A step of each of UDIM's phases."""
        for rate, warm_up in (("raw_step", math.inf), ("step", 0)):
            algorithm.warm_up = warm_up
            self.result[rate] = self._mean(self.step)

    def _domainfusion(self) -> None:
        from ..hosting import context

        algorithm, hparams = self.algorithm, self.algorithm.hparams
        configured = dict(hparams)
        algorithm.step = 1
        hparams.update(updating=False, lambda2=0)  # a step now neither generates nor distils
        if not algorithm.uses_diffusion:
            self.result["raw_step"] = self.result["step"] = self._mean(self.step)
            return
        hparams["generation_budget"] = max(configured["generation_batch"], len(context.current().in_splits))
        with self.stopwatch() as loading:
            algorithm.load_diffusion(self.device)
        self.result["load"] = loading.seconds
        if self.random_ldm:
            from ..diffusion.random_model import randomise

            randomise(algorithm.generation.sampler.ldm)
        encoding = self._encoding(configured["image_size"])
        few = max(1, int(ENCODED / encoding)) if encoding > SLOW_ENCODE else 0  # 0: whole batches
        self.result["few_images"] = few
        self.result["raw_step"] = self.result["step"] = self._mean(self.step)
        if algorithm.uses_generated:
            self._rounds(configured, encoding, few)
            self.result["step"] = self._mean(self.step)
        if configured["lambda2"] > 0:
            hparams["lambda2"] = configured["lambda2"]
            self._distillation(configured, few)

    def _encoding(self, size: int) -> float:
        """Seconds to encode one image with the VAE. The minimum of three, because it is subtracted from other times."""
        import torch

        images, ldm = torch.zeros(1, 3, size, size), self.algorithm.generation.sampler.ldm
        with torch.no_grad():
            return min(self._seconds(lambda: ldm.encode(images)) for _ in range(3))

    def _rounds(self, configured: dict[str, Any], encoding: float, few: int) -> None:
        """Measure a round per image: reading and storing first, then the diffusion model's work."""
        import torch

        from ..generated.generation import Generated
        from ..pixels import from_store

        algorithm, dataset, generation = self.algorithm, self.algorithm.generate_dataset, self.algorithm.generation

        def unchanged(x: Any, y: Any, seeds: list, shared: bool) -> Generated:
            return Generated(x, torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long))

        batch = configured["generation_batch"]
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
            generating = encoding + candidates * self._candidate(configured, x[:1], y[:1], encoding, few)
        else:
            seeds = [[i * candidates + j for j in range(candidates)] for i in rows]
            generating = self._mean(lambda: generation(x, y, seeds)) / len(x)
        self.result["kept"] = again / len(dataset.keys) + generating
        algorithm.train()

    def _candidate(self, configured: dict[str, Any], x: Any, y: Any, encoding: float, few: int) -> float:
        """Seconds of one candidate without encoding its source, extrapolated from one and two denoising steps.

        Both are measured with `few` candidates of one source. The time is linear in the U-Net's rows; everything else
        happens once per candidate.
        """
        from ..diffusion.candidates import CandidateSampler
        from ..diffusion.prompted import PromptedModel
        from ..generated.generation import Generation

        real, points = self.algorithm.generation, []
        model = PromptedModel(real.sampler.ldm, real.sampler.prompts)
        for steps in (1, 2):
            every_step = {"denoising_steps": steps, "denoising_timesteps": None, "strength": 1.0, "early_choice": None}
            whole = {"guidance_interval": 1.0, "guidance_agreement": None, "reuse_interval": 1}
            hparams = {**configured, **every_step, **whole}
            generation = Generation(CandidateSampler.of(model, hparams), real.judge, hparams)
            seconds = self._seconds(partial(generation, x, y, [list(range(few))]))
            points.append((_unet_rows(generation.sampler), max(0.0, seconds - encoding) / few))
        (low, first), (high, second) = points
        return first + (_unet_rows(real.sampler) - low) * max(0.0, second - first) / (high - low)

    def _distillation(self, configured: dict[str, Any], few: int) -> None:
        """Measure LD per image and draw, from the seconds that `update` returns, on at most `few` images (0: all)."""
        from ..hosting import context

        hparams = self.algorithm.hparams
        hparams["ld_when"] = "step"  # a gradient takes the same time whenever it is computed
        hparams["ld_images"] = min(few, configured["ld_images"] or few) if few else configured["ld_images"]
        seconds: list[float] = []
        self._mean(lambda: seconds.append(self.step()["ld_seconds"]))
        seconds = seconds[1:] or seconds
        batch = hparams["batch_size"] * len(context.current().in_splits)
        images = min(hparams["ld_images"] or batch, batch)
        self.result["ld_gradient"] = sum(seconds) / len(seconds) / images / configured["ld_draws"]

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


def _unet_rows(sampler: Any) -> int:
    """Rows of all U-Net calls for one candidate: one per step, two in a guided step."""
    return sampler.evaluations + sampler.guided


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(exit_status(main))
