"""What LD's random draws cost and what they leave to chance: `python -m benchmarks.ld_variance --data_dir data
--output FILE.json`.

The coefficients a_i of the same training images of DigitStyles at the same confidences are drawn many times, with
fresh timesteps and noise. Each way to draw has its variance and its seconds, beside those of one draw.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import InputError, exit_status
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting.ld_presets import LD_PRESETS
from domainbed_domainfusion.seeding import generator_of, seed_of

from .arguments import arguments
from .host_run import HostData
from .results import Results, Table, keep_and_print, shown
from .timing import interleaved, paired_ratio

DATASET, TEST_ENV = "DigitStyles", 3
PRESETS = ("mean", "score", "guidance")
CONFIDENCES = 0.1, 0.95  # the images' p lie evenly between them
TIMED = 5  # rounds


class Way(NamedTuple):
    """One way to draw (t, ε)."""

    draws: int
    antithetic: bool = False
    stratified: bool = False

    def __str__(self) -> str:
        words = [f"{self.draws} draw" + "s" * (self.draws > 1)]
        words += ["antithetic"] * self.antithetic + ["stratified"] * self.stratified
        return ", ".join(words)


WAYS = [
    Way(1),
    Way(1, stratified=True),
    Way(2),
    Way(2, stratified=True),
    Way(2, antithetic=True),
    Way(2, antithetic=True, stratified=True),
    Way(4),
    Way(4, antithetic=True, stratified=True),
]
COLUMNS = ["reading", "draws of an image", "variance of a", "variance of a minibatch's mean", "seconds", "price"]


class Draws:
    """The coefficients of some images under one reading."""

    def __init__(self, model: PromptedModel, hparams: dict[str, Any], x: Tensor, y: Tensor) -> None:
        self.model, self.hparams, self.x, self.y = model, hparams, x, y
        self.p = torch.linspace(*CONFIDENCES, len(x))

    def coefficients(self, way: Way, number: int) -> Tensor:
        """a (B,) of one set of random numbers; the same number is the same set.

        The images stand in another order in each set, because an image's place in the minibatch decides its stratum.
        """
        order = torch.randperm(len(self.x), generator=generator_of("ld variance", number))
        seeds = [seed_of("ld variance", number, i) for i in order.tolist()]
        a = self._distillation(way).coefficients(self.x[order], self.y[order], self.p[order], seeds, way.stratified)[1]
        return torch.empty_like(a).index_copy(0, order, a)

    def _distillation(self, way: Way) -> LatentDistillation:
        hparams = {**self.hparams, "ld_draws": way.draws, "ld_antithetic": way.antithetic, "ld_batch": len(self.x)}
        return LatentDistillation.of(self.model, hparams)


def variances(a: Tensor) -> tuple[float, float]:
    """Of coefficients (sets, B): the variance over the sets, a mean over the images; and that of the images' mean."""
    a = a.double()
    return a.var(0).mean().item(), a.mean(1).var().item()


def run(data_dir: Path, images: int, sets: int) -> Results:
    """Measure every reading and way. Raises InputError for less than 2 images or sets."""
    if images < 2 or sets < 2:
        raise InputError("--images and --sets must be at least 2.")
    dataset = host.datasets.get_dataset_class(DATASET)(str(data_dir), [TEST_ENV], {})
    x, y = HostData(dataset, images, "cpu", test_env=TEST_ENV).training_images(images)
    results = Results("ld_variance", f"{DATASET}, pocket", {"images": images, "sets": sets})
    results.notes.append(
        "Everything is a ratio to one draw. Variance of a: for one image. Variance of a minibatch's mean: of the mean "
        "over the images, which stratification lowers. Price: the latter variance times the seconds, below 1 where the "
        f"way pays. The standard error of a ratio of variances is about {200 / (sets - 1) ** 0.5:.0f} %."
    )
    for preset in PRESETS:
        hparams = {**host.hparams_registry.default_hparams("DomainFusion", DATASET), **LD_PRESETS[preset]}
        model = PromptedModel.load(hparams, list(dataset.CLASS_NAMES), torch.device("cpu"))
        _measure(preset, Draws(model, hparams, x, y), sets, results)
    return results


def _measure(preset: str, draws: Draws, sets: int, results: Results) -> None:
    """Add this reading's table, and how its signal compares with its noise."""
    methods = {str(way): (lambda way=way: draws.coefficients(way, 0)) for way in WAYS}
    seconds = interleaved(methods, TIMED, "cpu", preset)
    results.seconds |= {f"{preset}: {name}": taken for name, taken in seconds.items()}
    table, one = Table(COLUMNS), str(WAYS[0])
    of_one: tuple[float, float] | None = None
    for way in WAYS:
        numbers = tqdm(range(sets), desc=f"{preset}: {way}", file=sys.stderr, disable=None)
        a = torch.stack([draws.coefficients(way, number) for number in numbers])
        found = variances(a)
        if of_one is None:
            of_one = found
            share = (a.double().mean(0).abs() / a.double().std(0)).median().item()
            results.notes.append(
                f"{preset}: with one draw the median image's mean of a is {share:.2f} of its standard deviation."
            )
        ratio = paired_ratio(seconds[str(way)], seconds[one])
        of_image, of_mean = (mine / first for mine, first in zip(found, of_one))
        price = ratio.scaled(of_mean)
        table.rows.append([preset, str(way), f"{of_image:.2f}", f"{of_mean:.2f}", shown(ratio), shown(price)])
        results.ratios[f"{preset}: {way}"] = price
    results.tables.append(table)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=12, help="training images (default: %(default)s)")
    parser.add_argument("--sets", type=int, default=200, help="of random numbers (default: %(default)s)")
    given = parser.parse_args()
    return keep_and_print(run(given.data_dir, given.images, given.sets), given.output, "ld_variance")


if __name__ == "__main__":
    sys.exit(exit_status(main))
