"""The one exception for bad input."""

import difflib
from collections.abc import Iterable


class InputError(SystemExit):
    """Something the user gave cannot work; the message is one sentence that says what and how to mend it.

    A `SystemExit`, so that a command line prints the sentence without a traceback and exits with status 1,
    and so that no `except Exception` on the way swallows it.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name nobody knows; it offers the nearest known one."""
    known = list(known)
    lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)
    hint = f": did you mean {lower[nearest[0]]!r}?" if nearest else ""
    return InputError(f"There is no {kind} called {name!r}{hint} (known: {', '.join(known)}).")
