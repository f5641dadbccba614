"""Looks up a class by the name that the user typed."""

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import unknown_name


def class_named(namespace: Mapping[str, Any], name: str, base: type, kind: str, known: Iterable[str]) -> type:
    """The subclass of `base` with this name in `namespace`; raises InputError if there is none."""
    found = namespace.get(name)
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise unknown_name(kind, name, known)
