"""One row of the table of hparams: its default, its search, what a value may be, and what a value changes."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import host

#: Datasets of digits or of random tensors, for which the embedded diffusion model is the sensible default.
POCKET_DATASETS = ("Debug28", "Debug224", "RotatedMNIST", "ColoredMNIST", "DigitStyles")

# What an hparam changes in a run: `Hparam.changes`.
CLASSIFIER = "classifier"  # how θ is built or trained
ROUNDS = "rounds"  # which images are generated, when, and from which seeds: Algorithm 1, lines 1 to 6
CANDIDATES = "candidates"  # the latents of a candidate: line 7
CHOICE = "choice"  # what is made of the candidates: lines 8 to 12
LD = "LD"  # Latent Distillation: Algorithm 2
SCORES = "scores"  # the scores of a zero-shot classifier
ANSWERS = "answers"  # what a trained classifier answers with the diffusion model's help
SPEED = "speed"  # time and memory only; results stay equal up to float noise
KEPT = "kept"  # only which files a run leaves
PARTS = (CLASSIFIER, ROUNDS, CANDIDATES, CHOICE, LD, SCORES, ANSWERS, SPEED, KEPT)

# Whether an hparam changes how long a step, a candidate or an LD gradient takes: `Hparam.time`.
NO_TIME = "no"
TIME = "yes"
PROPORTIONAL = "proportional"  # the time is linear in the value
TIMES = (NO_TIME, TIME, PROPORTIONAL)


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Hparam:
    """One row of the table.

    `recorded_as` and `identify` are for keys and identities. The diffusion model, for example, is recorded by a digest
    of its weights ("model") in place of the name it goes by.
    """

    name: str
    default: Any
    range: tuple[Callable[[Any], bool], str]  # a predicate, and what it accepts in words
    meaning: str
    source: str
    changes: tuple[str, ...]  # of PARTS
    time: str  # of TIMES
    pocket: Any = None  # the default on POCKET_DATASETS where it differs
    search: tuple | None = None  # values that a random draw chooses from; None: always the default
    recorded_as: str | None = None  # the entry of an identity that says more than the value itself
    identify: Callable[[Any], Any] = _itself  # what of the value counts in a run's identity

    def valid(self, value: Any) -> bool:
        return self.range[0](value)

    @property
    def changes_results(self) -> bool:
        """Whether a run with another value ends otherwise, beyond float noise."""
        return bool(set(self.changes) - {SPEED, KEPT})

    def default_for(self, dataset: str) -> Any:
        return self.pocket if self.pocket is not None and dataset in POCKET_DATASETS else self.default

    def draw(self, dataset: str, random_seed: int) -> Any:
        """The host's way: each name has a generator of its own, so no hparam's draw moves another's."""
        if self.search is None:
            return self.default_for(dataset)
        random_state = np.random.RandomState(host.lib.misc.seed_hash(random_seed, self.name))
        return self.search[random_state.choice(len(self.search))]


def number(low: float, high: float = float("inf"), open_low: bool = False) -> tuple[Callable[[Any], bool], str]:
    """Numbers from `low` (above it with open_low) to `high`."""

    def valid(value: Any) -> bool:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return plain and (low < value if open_low else low <= value) and value <= high

    return valid, (f"a number {'above' if open_low else 'from'} {low:g}" + (f" to {high:g}" if high < 1e300 else ""))


def integer(low: int, high: float = float("inf")) -> tuple[Callable[[Any], bool], str]:
    """Whole numbers from `low` to `high`."""
    in_range, text = number(low, high)
    return (lambda value: in_range(value) and isinstance(value, int)), text.replace("a number", "a whole number")


def one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
    """One of these texts."""
    return (lambda value: value in values), "one of " + ", ".join(values)


def or_as_preset(given: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    """The range `given`, or null: the value is then that of `ld_preset`."""
    valid, text = given
    return (lambda value: value is None or valid(value)), f"null (as ld_preset says) or {text}"


def or_null(given: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    """The range `given`, or null."""
    valid, text = given
    return (lambda value: value is None or valid(value)), f"null or {text}"


def _falling(value: Any) -> bool:
    whole = integer(0, 999)[0]
    return (
        isinstance(value, list)
        and bool(value)
        and all(map(whole, value))
        and all(a > b for a, b in itertools.pairwise(value))
    )


def _rising_shares(value: Any) -> bool:
    share = number(0, 1)[0]
    return isinstance(value, list) and len(value) == 2 and all(map(share, value)) and value[0] < value[1]


def _stages(value: Any) -> bool:
    """Whether it is [[timesteps, classes], …], the first rising to 1000 at most, the second not rising."""
    whole = integer(1, 1000)[0]
    if not (
        isinstance(value, list)
        and value
        and all(isinstance(stage, list) and len(stage) == 2 and whole(stage[0]) and whole(stage[1]) for stage in value)
    ):
        return False
    return all(a[0] < b[0] and a[1] >= b[1] for a, b in itertools.pairwise(value))


def _rising_steps(value: Any) -> bool:
    whole = integer(1, 1000)[0]
    return isinstance(value, list) and bool(value) and all(map(whole, value)) and value == sorted(set(value))


def _rising_digits(value: Any) -> bool:
    return _is_text(value) and set(value) <= set("01234") and list(value) == sorted(set(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(each) for pair in value.items() for each in pair)


STAGES = _stages, "a list of [timesteps, classes] pairs, timesteps rising to 1000 at most, classes not rising"
FALLING = or_null((_falling, "a list of falling whole numbers from 999 to 0"))
SHARES = _rising_shares, "a list of two rising shares between 0 and 1"
RISING_STEPS = _rising_steps, "a list of rising whole numbers from 1 to 1000"
STAGE_NUMBERS = _rising_digits, "a text of rising digits from 0 to 4, such as 123"
FLAG = (lambda value: isinstance(value, bool)), "true or false"
COMPILE = (lambda value: isinstance(value, bool) or value == "cuda_graphs"), "true, false or cuda_graphs"
TEXT = _is_text, "a text"
TEMPLATE = (lambda value: isinstance(value, str) and value.count("{}") == 1), "a text with one {} for the class name"
NAMES = (
    (lambda value: value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))),
    "null, or a list with one text per class in label order",
)
DEVICES = (
    (lambda value: value in (None, "all") or (isinstance(value, list) and bool(value) and all(map(_is_text, value)))),
    'null, all, or a list of devices, such as ["cuda:0", "cuda:1"]',
)
DESCRIPTIONS = (
    (lambda value: value is None or _texts_by_name(value)),
    "null, or an object with a text for each domain's name",
)
OPTIONAL_FOLDER = (lambda value: value is None or _is_text(value)), "null or the path of a folder"
OPTIONAL_TEXT = (lambda value: value is None or isinstance(value, str)), "null or a text"
TRUE_FALSE_FILE = (
    (lambda value: isinstance(value, (bool, str))),
    "true, false, the path of a .safetensors file or a package's name",
)
