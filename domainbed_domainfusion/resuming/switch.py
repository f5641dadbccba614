"""The environment variable that turns resuming on, and the minutes between checkpoints."""

import os

from ..errors import InputError

VARIABLE = "DOMAINFUSION_RESUME"
DEFAULT_MINUTES = 10.0
ON, OFF = ("1", "on", "true", "yes"), ("0", "off", "false", "no")


def minutes() -> float | None:
    """Minutes between two checkpoints, or None if DOMAINFUSION_RESUME does not ask for them.

    "on" and "1" mean DEFAULT_MINUTES; any other number is a number of minutes. For one minute write "1.0".
    Raises InputError for anything else.
    """
    text = _text()
    if text in ("", *OFF):
        return None
    if text in ON:
        return DEFAULT_MINUTES
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(
            f"{VARIABLE}={text!r} is not a number of minutes: set it to on (a checkpoint every {DEFAULT_MINUTES:g} "
            "minutes), to a number of minutes such as 30, or to off."
        )
    return value


def is_off() -> bool:
    """Whether DOMAINFUSION_RESUME says off. What turns resuming on by default asks this first."""
    return _text() in OFF


def environment() -> dict[str, str]:
    """The variable for jobs that shall have checkpoints unless the user has set it already."""
    return {VARIABLE: os.environ.get(VARIABLE) or "on"}


def _text() -> str:
    return os.environ.get(VARIABLE, "").strip().lower()
