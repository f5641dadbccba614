"""Every algorithm of the plugin beside ERM: `python -m benchmarks.algorithms --data_dir data --output FILE.json`.

Lines of code, seconds of a step and of a whole run, memory, and the seconds of an image where `predict` is not ERM's.

A run is that of sweeps/digits/family.txt on a fifteenth of the images: four epochs of five steps, in place of 75.
Budgets of generation are divided alike, so generation has the share of a run that it has there. All algorithms take
each step in turns, on the same minibatch.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_domainfusion.errors import InputError, exit_status, unknown_name
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.sweeping import sweep_files

from .arguments import arguments
from .code_lines import code_lines
from .host_run import HostData
from .peak_memory import extra_peak
from .results import Results, Table, keep_and_print, megabytes, shown
from .timing import Spread, interleaved, paired_ratio

ERM, DATASET, BATCH = "ERM", "DigitStyles", 16  # images per domain
SWEEP = Path(__file__).resolve().parents[1] / "sweeps" / "digits" / "family.txt"
FULL_EPOCH, EPOCH, EPOCHS = 75, 5, 4  # steps of an epoch in the sweep and here; epochs of a run in both
TEST_ENV = 3  # its images are predicted
PREDICTED = 16  # images in a prediction
#: Each image is predicted in the dearest way: φ is asked at every evaluation, and DSI is never sure.
PREDICTING = {"test_time_when": "every", "dsi_threshold": 1.0}


@dataclass
class Measured:
    """What was measured of one algorithm, over all repeats."""

    steps: list[float] = field(default_factory=list)  # seconds of each step
    generated: list[bool] = field(default_factory=list)  # whether the step had a round of generation
    first_image: list[float] = field(default_factory=list)  # seconds of the first prediction, of one image
    images: list[float] = field(default_factory=list)  # seconds of the next, of PREDICTED others
    training_bytes: int = 0
    prediction_bytes: int = 0

    def plain_steps(self, reference: "Measured") -> tuple[list[float], list[float]]:
        """(own seconds, the reference's) of the steps without a round of generation."""
        pairs = [(a, b) for a, b, made in zip(self.steps, reference.steps, self.generated, strict=True) if not made]
        return [a for a, _ in pairs], [b for _, b in pairs]

    def runs(self, repeats: int) -> list[float]:
        """The seconds of all steps of each run."""
        length = len(self.steps) // repeats
        return [sum(self.steps[start : start + length]) for start in range(0, len(self.steps), length)]


def swept_hparams() -> dict[str, dict[str, Any]]:
    """Algorithm → its hparams in the sweep file, where it first stands."""
    found: dict[str, dict[str, Any]] = {}
    for sweep in sweep_files.read(SWEEP).sweeps:
        given = sweep.given()
        for name in given.algorithms:
            found.setdefault(name, json.loads(given.hparams or "{}"))
    return found


def hparams_of(name: str, swept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The hparams of a run: those of the sweep file; ERM's there where it has none, but for a default backbone."""
    values = host.hparams_registry.default_hparams(name, DATASET)
    if values.get("backbone", "host") == "host":
        values |= swept[ERM]
    values |= {**swept.get(name, {}), "batch_size": BATCH, **PREDICTING}
    if values.get("generation_budget"):
        values["generation_budget"] = max(1, values["generation_budget"] * EPOCH // FULL_EPOCH)
    return values


@dataclass(frozen=True)
class Row:
    """What a row of the tables is of."""

    algorithm: str
    hparams: dict[str, Any]
    reference: str  # the row of ERM with the same backbone

    @property
    def own_predict(self) -> bool:
        """Whether the algorithm answers in another way than ERM."""
        return host.algorithms.get_algorithm_class(self.algorithm).predict is not host.algorithms.ERM.predict


def rows_of(names: list[str]) -> dict[str, Row]:
    """The rows of these algorithms and, before them, of ERM with each backbone that they have."""
    swept = swept_hparams()
    own, usual = hparams_of(ERM, swept), swept[ERM]["backbone"]
    references, rows = {ERM: Row(ERM, own, ERM)}, {}
    for name in names:
        hparams = hparams_of(name, swept)
        reference = ERM if hparams["backbone"] == usual else f"{ERM}, {hparams['backbone']}"
        references.setdefault(reference, Row(ERM, {**own, "backbone": hparams["backbone"]}, reference))
        rows[name] = Row(name, hparams, reference)
    return {**references, **rows}


class Comparison:
    """The rows' algorithms on one dataset, and what is measured of them."""

    def __init__(self, rows: dict[str, Row], data_dir: Path):
        self.rows = rows
        self.dataset = host.datasets.get_dataset_class(DATASET)(str(data_dir), [TEST_ENV], {})
        torch.manual_seed(0)
        self.data = HostData(self.dataset, BATCH, "cpu", epoch=EPOCH, test_env=TEST_ENV)
        answering = {name for name, row in rows.items() if row.own_predict}
        references = {rows[name].reference for name in answering}
        self.predicting = [name for name in rows if name in answering | references]
        self.measured = {name: Measured() for name in rows}
        self.images: Tensor = torch.stack([self.dataset[TEST_ENV][i][0] for i in range(1 + PREDICTED)])

    def built(self, name: str, steps: int) -> Any:
        """A new algorithm at the start of a run of so many steps."""
        self.dataset.N_STEPS = steps
        return self.data.built(self.rows[name].algorithm, self.rows[name].hparams)

    def time(self, steps: int, counted: bool = True) -> None:
        """One run of every algorithm, of so many steps, and its predictions. counted: whether the seconds are kept."""
        algorithms = {name: self.built(name, steps) for name in self.rows}
        minibatches = [self.data.minibatches() for _ in range(steps)]
        generated: dict[str, list[bool]] = {name: [] for name in algorithms}

        def step(name: str, coming: Iterator[list]) -> None:
            values = algorithms[name].update(next(coming))
            generated[name].append(values.get("generated_images", 0) > 0)

        def predict(name: str, coming: Iterator[Tensor]) -> None:
            algorithms[name].predict(next(coming))

        methods = {name: partial(step, name, iter(minibatches)) for name in algorithms}
        trained = interleaved(methods, steps, "cpu", "steps", warm_up=0)
        for algorithm in algorithms.values():
            algorithm.eval()
        methods = {name: partial(predict, name, iter(self.images.split([1, PREDICTED]))) for name in self.predicting}
        with torch.no_grad():
            predicted = interleaved(methods, 2, "cpu", "predictions", warm_up=0)
        for name, measured in self.measured.items() if counted else ():
            measured.steps += trained[name]
            measured.generated += generated[name]
            if name in predicted:
                measured.first_image.append(predicted[name][0])
                measured.images.append(predicted[name][1])

    def measure_memory(self) -> None:
        """Of a run of two steps from the construction on, the first with its generation, and of a prediction."""
        minibatches = [self.data.minibatches() for _ in range(2)]
        for name, measured in self.measured.items():
            measured.training_bytes = extra_peak(partial(self._trained, name, minibatches), "cpu")
            if name in self.predicting:
                algorithm = self._trained(name, minibatches).eval()
                with torch.no_grad():
                    measured.prediction_bytes = extra_peak(partial(algorithm.predict, self.images[1:]), "cpu")

    def _trained(self, name: str, minibatches: list[list]) -> Any:
        algorithm = self.built(name, len(minibatches))
        for minibatch in minibatches:
            algorithm.update(minibatch)
        return algorithm


NOTES = """
Code lines are those of the algorithm's own module, without blank lines, comments and docstrings. A module may hold two
algorithms. What modules share (`at_test_time.py`, `ascent.py`, the diffusion model, generation) is not in them.

A step is one without a round of generation. A run's step is the mean over all steps of a run, rounds included. Of
UDIM's steps a quarter is its warm-up. On digits DomainFusion's default has no Latent Distillation. A row "ERM,
BACKBONE" is ERM with another backbone, and an algorithm that has this backbone is divided by it.

Memory is the most that tensors hold at once: in training from the construction through two steps, the first with its
generation; in prediction beside what is held before it. The diffusion model's weights are not in it.

Predictions are given where they are not ERM's. The first is of one image, with all that an algorithm makes before it:
SDA's images and its copy of the classifier, AdaNPC's memory of the few training images here. The seconds of an image
are those of {images} others, of which nothing has been kept, divided by {images}. DSI is never sure, the dearest case.
"""


def run(names: list[str], data_dir: Path, repeats: int) -> Results:
    """Measure the algorithms `names` beside ERM. Raises InputError for a name that the plugin does not have."""
    if repeats < 1:
        raise InputError("--repeats must be at least 1.")
    for name in names:
        if name not in host.our_algorithms():
            raise unknown_name("algorithm of the plugin", name, host.our_algorithms())
    comparison = Comparison(rows_of(names), data_dir)
    comparison.time(1, counted=False)
    for _ in range(repeats):
        comparison.time(EPOCHS * EPOCH)
    comparison.measure_memory()
    return results_of(comparison.measured, comparison.rows, repeats)


TRAINING = [
    *("algorithm", "module", "code lines", "seconds of a step", "÷ ERM", "seconds of a run's step", "run ÷ ERM"),
    *("memory (MB)", "memory ÷ ERM"),
]
PREDICTION = ["algorithm", "first prediction (s)", "seconds of an image", "÷ ERM", "memory (MB)", "memory ÷ ERM"]


def results_of(measured: dict[str, Measured], rows: dict[str, Row], repeats: int) -> Results:
    """A table of training, one of prediction, and each ratio to ERM."""
    settings = {"images per step": 3 * BATCH, "steps": EPOCHS * EPOCH, "repeats": repeats}
    results = Results("algorithms", f"{DATASET}, pocket", settings, [Table(TRAINING), Table(PREDICTION)])
    results.notes.append(NOTES.strip().format(images=PREDICTED))
    for name, own in measured.items():
        reference, ratios = measured[rows[name].reference], {}
        plain, beside = own.plain_steps(reference)
        whole, whole_beside = own.runs(repeats), reference.runs(repeats)
        ratios["step"], ratios["run"] = paired_ratio(plain, beside), paired_ratio(whole, whole_beside)
        results.tables[0].rows.append(
            [
                *[name, *module_and_lines(rows[name].algorithm)],
                *[shown(Spread.of(plain), 3), shown(ratios["step"])],
                *[shown(Spread.of(whole).scaled(repeats / len(own.steps)), 3), shown(ratios["run"])],
                *_bytes(own.training_bytes, reference.training_bytes),
            ]
        )
        results.seconds[f"{name}, steps"] = own.steps
        if own.images:
            ratios["image"] = paired_ratio(own.images, reference.images)
            results.tables[1].rows.append(
                [
                    *[name, shown(Spread.of(own.first_image), 3)],
                    *[shown(Spread.of(own.images).scaled(1 / PREDICTED), 4), shown(ratios["image"])],
                    *_bytes(own.prediction_bytes, reference.prediction_bytes),
                ]
            )
            results.seconds[f"{name}, first prediction"] = own.first_image
            results.seconds[f"{name}, prediction of {PREDICTED} images"] = own.images
        if name != rows[name].reference:
            results.ratios |= {f"{part}_{name}": ratio for part, ratio in ratios.items()}
    return results


def module_and_lines(name: str) -> list[str]:
    """The file of one of our algorithms and its lines of code."""
    if name not in host.our_algorithms():
        return ["the host's", ""]
    file = Path(inspect.getfile(host.algorithms.get_algorithm_class(name)))
    return [file.name, str(code_lines(file.read_text(encoding="utf-8")))]


def _bytes(own: int, reference: int) -> list[str]:
    return [megabytes(own), f"{own / reference:.2f}"]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--algorithms", nargs="+", default=host.our_algorithms(), help="default: all that the plugin has"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs that are counted (default: %(default)s)")
    given = parser.parse_args()
    results = run([name for name in given.algorithms if name != ERM], given.data_dir, given.repeats)
    return keep_and_print(results, given.output, "algorithms")


if __name__ == "__main__":
    sys.exit(exit_status(main))
