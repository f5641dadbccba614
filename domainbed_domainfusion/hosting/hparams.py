"""Every hparam that the plugin adds, in one table: name, default, search, range, meaning, source, and what it changes.

The rows stand in `classifier_hparams` (no diffusion model takes part), `domainfusion_hparams`, `rival_hparams` (methods
that papers compare with), `test_time_hparams` and `zero_shot_hparams`. Here they become each algorithm's table.

Sources: "S" is the paper's supplement, "A" its abstract, "R" the public reviews of an earlier version, "host"
DomainBed's own habit, "ours" a choice that the paper leaves open. `changes` and `time` are the one place that says what
an hparam decides: the cache of candidates, a run's identity, the provenance of generated images and the groups of an
estimate's calibration derive from them.
"""

import dataclasses
import difflib
import itertools
import json
from typing import Any

from ..errors import InputError
from .classifier_hparams import AUGMIX, BACKBONE, EVERY_ALGORITHM, RANDAUGMENT, SAGM, SAM, TRAM, UDIM
from .domainfusion_hparams import DOMAINFUSION, LDM
from .hparam import Hparam
from .rival_hparams import CDGA_GUIDES, RIVALS
from .test_time_hparams import LDM_DEFAULTS, LDM_UNUSED, TEST_TIME
from .zero_shot_hparams import DIFFUSION_CLASSIFIER, TEXT_TO_IMAGE_CLASSIFIER, ZERO_SHOT

#: Datasets that DomainBed's registry does not know, and the one of its own whose defaults they take.
HOST_EQUIVALENT = {"DigitStyles": "RotatedMNIST"}


def _with_default(row: Hparam, defaults: dict[str, Any]) -> Hparam:
    """The row with the default that `defaults` has for it; the row itself if it has none."""
    return (
        dataclasses.replace(row, default=defaults[row.name], pocket=None, search=None) if row.name in defaults else row
    )


#: What `Synthetic` changes in DomainFusion's defaults.
SYNTHETIC = {"candidate_source": "prompt", "sampling_strategy": False, "lambda2": 0.0}

#: What `CDGA` has of DomainFusion's rows, with these defaults in their place.
CDGA_ROWS = ("ldm_decoder", "ldm_compile", "generation_budget", "denoising_steps", "strength", "guidance_scale",
             "guidance_interval", "guidance_agreement", "reuse_interval", "denoising_timesteps", "scheduler",
             "timestep_spacing", "generation_batch", "gallery", "save_generated", "candidate_cache")  # fmt: skip
CDGA_DEFAULTS = {"prompt_template": "a {}", "denoising_steps": 50, "strength": 0.75}
CDGA = (
    tuple(
        dataclasses.replace(row, default=CDGA_DEFAULTS.get(row.name, row.default))
        for row in LDM + DOMAINFUSION
        if row in LDM or row.name in CDGA_ROWS
    )
    + CDGA_GUIDES
)


def _at_test_time(algorithm: str) -> tuple[Hparam, ...]:
    """All rows of a method that uses the diffusion model at test time."""
    defaults = LDM_DEFAULTS.get(algorithm, {})
    used = [row for row in LDM if row.name not in LDM_UNUSED.get(algorithm, ())]
    own = tuple(dataclasses.replace(row, default=defaults.get(row.name, row.default)) for row in used)
    return own + TEST_TIME[algorithm]


TABLES = {
    "SAM": SAM,
    "SAGM": SAM + SAGM,
    "TRAM": TRAM,
    "UDIM": SAM + UDIM,
    **RIVALS,
    "RandAugment": RANDAUGMENT,
    "AugMix": AUGMIX,
    "DomainFusion": BACKBONE + LDM + DOMAINFUSION,
    "Synthetic": BACKBONE + LDM + tuple(_with_default(row, SYNTHETIC) for row in DOMAINFUSION),
    "CDGA": BACKBONE + CDGA,
    **{algorithm: _at_test_time(algorithm) for algorithm in TEST_TIME},
    "DiffusionClassifier": LDM + ZERO_SHOT + DIFFUSION_CLASSIFIER,
    "TextToImageClassifier": LDM + ZERO_SHOT + TEXT_TO_IMAGE_CLASSIFIER,
}
#: name → row. `Synthetic`'s rows have the names of DomainFusion's, which come first and stay.
ROWS: dict[str, Hparam] = {}
for _row in itertools.chain(EVERY_ALGORITHM, *TABLES.values()):
    ROWS.setdefault(_row.name, _row)


def added_defaults(algorithm: str, dataset: str) -> dict[str, Any]:
    """What the plugin adds to (or replaces in) the host's default hparams of a pair; plain JSON values."""
    return {row.name: row.default_for(dataset) for row in TABLES.get(algorithm, ())}


def added_draws(algorithm: str, dataset: str, random_seed: int) -> dict[str, Any]:
    """The same for the host's random hparams."""
    return {row.name: row.draw(dataset, random_seed) for row in TABLES.get(algorithm, ())}


#: Rows whose name the host uses too: their ranges bind our algorithm, not the host's.
HOST_NAMES = ("lr", "weight_decay", "batch_size")


def check_values(hparams: dict[str, Any]) -> None:
    """Raise InputError for the first value out of its range; keys that are not in our table are passed over."""
    for name, value in hparams.items():
        row = ROWS.get(name)
        if row is not None and not row.valid(value):
            raise InputError(f"The hparam {name} is {value!r}, but must be {row.range[1]}: {row.meaning}.")
    if hparams.get("backbone", "host") == "host" and hparams.get("pretrained", True) is not True:
        raise InputError(
            "The hparam pretrained needs a named backbone, because the host's own choice always loads its "
            'weights: add for example "backbone": "resnet18" to --hparams.'
        )


def check_names(names: list[str], known: set[str]) -> None:
    """Raise InputError for the first name that is not among `known`; it names the nearest known one."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)
            raise InputError(f"Nobody knows the hparam {name!r} in --hparams: did you mean {nearest[0]!r}?")


def markdown_table() -> str:
    """The table as the documentation shows it: `python -m domainbed_domainfusion.hosting.hparams`."""
    lines = ["| hparam | default | digits | searched | meaning | changes | source |", "|---|---|---|---|---|---|---|"]
    for row in ROWS.values():
        values = [
            json.dumps(row.default),
            "" if row.pocket is None else json.dumps(row.pocket),
            ""
            if row.search is None
            else ", ".join(value if isinstance(value, str) else f"{value:g}" for value in row.search),
        ]
        changes = ", ".join(row.changes)
        lines.append(f"| `{row.name}` | {' | '.join(values)} | {row.meaning} | {changes} | {row.source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
