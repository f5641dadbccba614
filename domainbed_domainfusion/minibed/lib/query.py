"""A small query language over lists of records (dicts)."""

import inspect
import json
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

Selector = str | Callable[[Any], Any]


def make_selector_fn(selector: Selector) -> Callable[[Any], Any]:
    """`"a.b"` reads `record["a"]["b"]`, `"a, b"` reads both as a pair; a function is returned unchanged."""
    if callable(selector):
        return selector
    if not isinstance(selector, str):
        raise TypeError(f"a selector is a string or a function, not {selector!r}")
    if "," in selector:
        parts = [make_selector_fn(part) for part in selector.split(",")]
        return lambda record: tuple(part(record) for part in parts)
    keys = [key.strip() for key in selector.split(".")]

    def read(record: Any) -> Any:
        for key in keys:
            record = record[key]
        return record

    return read


def _as_key(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return json.dumps({"_": value}, sort_keys=True)
    return value


class Q:
    """A list with queries; each query returns a new Q, except where it returns one value."""

    def __init__(self, items: list[Any]):
        self._list = items

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list)

    def __getitem__(self, position: int | slice) -> Any:
        return self._list[position]

    def __eq__(self, other: object) -> bool:
        return self._list == (other._list if isinstance(other, Q) else other)

    def __repr__(self) -> str:
        return repr(self._list)

    def group(self, selector: Selector) -> "Q":
        """(value, Q of the records with that value) for each value, in the order of the values."""
        read = make_selector_fn(selector)
        groups: dict = {}
        for item in self._list:
            value = read(item)
            groups.setdefault(_as_key(value), (value, Q([])))[1]._list.append(item)
        return Q([groups[key] for key in sorted(groups)])

    def map(self, function: Callable[..., Any]) -> "Q":
        """Apply `function`; one with several parameters gets each item unpacked."""
        if len(inspect.signature(function).parameters) > 1:
            return Q([function(*item) for item in self._list])
        return Q([function(item) for item in self._list])

    def select(self, selector: Selector) -> "Q":
        read = make_selector_fn(selector)
        return Q([read(item) for item in self._list])

    def filter(self, keep: Callable[[Any], bool]) -> "Q":
        return Q([item for item in self._list if keep(item)])

    def filter_equals(self, selector: Selector, value: Any) -> "Q":
        read = make_selector_fn(selector)
        return self.filter(lambda item: read(item) == value)

    def filter_not_none(self) -> "Q":
        return self.filter(lambda item: item is not None)

    def unique(self) -> "Q":
        """Each distinct item once, in the order of first appearance."""
        first: dict = {}
        for item in self._list:
            first.setdefault(_as_key(item), item)
        return Q(list(first.values()))

    def sorted(self, key: Callable[[Any], Any] = lambda item: item) -> "Q":
        """Ascending and stable; NaN counts as the smallest."""

        def rank(item: Any) -> Any:
            value = key(item)
            return float("-inf") if isinstance(value, (float, np.floating)) and np.isnan(value) else value

        return Q(sorted(self._list, key=rank))

    def argmax(self, selector: Selector) -> Any:
        """The first item with the largest value."""
        return max(self._list, key=make_selector_fn(selector))

    def mean(self) -> float:
        return float(np.mean(self._list))
