"""Finding a thing by the name the user typed."""

import difflib
from typing import Any, Iterable, Mapping

from ...errors import InputError


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name nobody knows; it offers the nearest known one."""
    known = list(known)
    lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)
    hint = f": did you mean {lower[nearest[0]]!r}?" if nearest else ""
    return InputError(f"There is no {kind} called {name!r}{hint} (known: {', '.join(known)}).")


def class_named(namespace: Mapping[str, Any], name: str, base: type, kind: str, known: Iterable[str]) -> type:
    """The proper subclass of `base` that `namespace` holds under `name`; raises InputError if there is none."""
    found = namespace.get(name)
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise unknown_name(kind, name, known)
