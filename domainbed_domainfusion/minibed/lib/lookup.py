"""Finding a thing by the name the user typed."""

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import unknown_name


def class_named(namespace: Mapping[str, Any], name: str, base: type, kind: str, known: Iterable[str]) -> type:
    """The proper subclass of `base` that `namespace` holds under `name`; raises InputError if there is none."""
    found = namespace.get(name)
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise unknown_name(kind, name, known)
