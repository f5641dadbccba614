"""Which of a run's hparams decide a run, a candidate, a generated image or a time: read from `changes` and `time`."""

from typing import Any

from .hparam import CANDIDATES, CHOICE, PROPORTIONAL, TIME
from .hparams import ROWS


def of_a_run(hparams: dict[str, Any]) -> dict[str, Any]:
    """The values that a run's results depend on, for its identity. The host's own hparams are all among them."""
    found = {}
    for name, value in hparams.items():
        row = ROWS.get(name)
        if row is None:
            found[name] = value
        elif row.changes_results:
            found[name] = row.identify(value)
    return found


def of_a_candidate(hparams: dict[str, Any]) -> dict[str, Any]:
    """The values that a candidate's latents depend on, without those that its key records otherwise."""
    return {
        name: value
        for name, value in hparams.items()
        if name in ROWS and CANDIDATES in ROWS[name].changes and ROWS[name].recorded_as is None
    }


def of_a_generated_image(hparams: dict[str, Any], recorded: tuple[str, ...]) -> dict[str, Any]:
    """The values that a generated image depends on, in the table's order, for its provenance.

    recorded: entries of the provenance that stand in place of an hparam (see `Hparam.recorded_as`).
    """
    return {
        name: hparams[name]
        for name, row in ROWS.items()
        if name in hparams and {CANDIDATES, CHOICE} & set(row.changes) and row.recorded_as not in recorded
    }


def of_the_time(hparams: dict[str, Any]) -> dict[str, Any]:
    """The values that a step's time depends on, without the proportional ones.

    Of the host's own hparams these are all but numbers with a fraction, such as learning rates and penalties' weights.
    """
    return {
        name: value
        for name, value in hparams.items()
        if (ROWS[name].time == TIME if name in ROWS else not isinstance(value, float))
    }


def proportional() -> list[str]:
    """The names of the hparams in whose value the time is linear."""
    return [name for name, row in ROWS.items() if row.time == PROPORTIONAL]
