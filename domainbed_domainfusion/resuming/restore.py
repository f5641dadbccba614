"""Put a captured state into an algorithm that has just been built.

Tensors, lists and dicts are changed in place, because optimizers and other objects refer to them.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import values
from .capture import MODULE_INTERNALS, Capture, Node


def restore(root: Any, tree: Node, tensors: Mapping[str, Tensor], first_update: Callable[[], Any]) -> list[str]:
    """Put `tree` into `root`. Returns the captured objects that `root` still does not have.

    Some algorithms make objects in their first update, as Fish its inner network. If any is missing, `root` gets its
    own state back, makes that update, and is restored then.
    """
    built = Capture(root)
    missing = Restore(root, tree, tensors).missing
    if missing:
        Restore(root, built.tree, built.tensors)
        first_update()
        missing = Restore(root, tree, tensors).missing
    return missing


class Restore:
    """Puts `tree` into `root`. `missing`: the captured objects that `root` does not have, as "network_inner"."""

    def __init__(self, root: Any, tree: Node, tensors: Mapping[str, Tensor]):
        self.missing: list[str] = []
        self._tensors = tensors
        with torch.no_grad():
            self._restored(root, tree, "")

    def _fetch(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def _restored(self, present: Any, node: Node, path: str) -> Any:
        """The value with the node's state: `present` itself where it can be changed."""
        assert node is not None
        if "data" in node:
            return self._data(present, node["data"])
        if "generator" in node:
            present.set_state(self._fetch(node["generator"]))
        elif "state_dict" in node:
            present.load_state_dict({**present.state_dict(), **values.decode(node["state_dict"], self._fetch)})
        elif "items" in node:
            self._items(present, node["items"], path)
        else:
            self._attributes(present, node["object"], path)
        return present

    def _attributes(self, present: Any, nodes: dict[str, Node], path: str) -> None:
        attributes = vars(present) if hasattr(present, "__dict__") else {}
        for name, node in nodes.items():
            if name in MODULE_INTERNALS and isinstance(present, torch.nn.Module):
                continue
            self._entry(attributes, name, node, f"{path}.{name}" if path else name)

    def _items(self, present: Any, items: list, path: str) -> None:
        for encoded, node in items:
            key = values.decode(encoded, self._fetch)
            if isinstance(present, tuple):
                self._restored(present[key], node, f"{path}[{key}]")
            else:
                self._entry(present, key, node, f"{path}[{key}]")

    def _entry(self, container: Any, key: Any, node: Node, path: str) -> None:
        """Restore container[key]; plain data that is not there yet is added."""
        there = key in container if isinstance(container, dict) else key < len(container)
        if there and _fits(container[key], node):
            present = container[key]
            restored = self._restored(present, node, path)
            if restored is not present:
                container[key] = restored
        elif node is not None and "data" in node and isinstance(container, dict):
            container[key] = values.decode(node["data"], self._fetch)
        else:
            self.missing.append(path)

    def _data(self, present: Any, encoded: Any) -> Any:
        """Data of the same structure is changed in place, other data is replaced."""
        if not isinstance(encoded, dict):
            return encoded
        reference = encoded.get("tensor", encoded.get("parameter"))
        if reference is not None and isinstance(present, Tensor):
            content = self._tensors[reference]
            if present.shape == content.shape and present.dtype == content.dtype and _is_plain(present):
                present.copy_(content)
                if present.is_leaf:
                    gradient = encoded.get("gradient")
                    present.grad = None if gradient is None else self._fetch(gradient).to(present.device)
                return present
        for tag in ("dict", "ordered"):
            if tag in encoded and isinstance(present, dict):
                return self._dict(present, encoded[tag])
        if "list" in encoded and type(present) is list and len(present) == len(encoded["list"]):
            present[:] = [self._data(one, other) for one, other in zip(present, encoded["list"])]
            return present
        if "tuple" in encoded and type(present) is tuple and len(present) == len(encoded["tuple"]):
            return tuple(self._data(one, other) for one, other in zip(present, encoded["tuple"]))
        return values.decode(encoded, self._fetch)

    def _dict(self, present: dict, pairs: list) -> dict:
        former = dict(present)
        present.clear()
        for encoded_key, encoded in pairs:
            key = values.decode(encoded_key, self._fetch)
            present[key] = self._data(former[key], encoded) if key in former else values.decode(encoded, self._fetch)
        return present


def _fits(present: Any, node: Node) -> bool:
    """Whether `present` can take up the node: data replaces data, an object needs one of the same class."""
    if node is None or "data" in node:
        return True
    if "items" in node:
        return isinstance(present, (list, tuple, dict, deque))
    return not values.is_data(present) and node.get("class") in (None, type(present).__name__)


def _is_plain(tensor: Tensor) -> bool:
    """Whether each value has memory of its own, so that a tensor can be overwritten."""
    return tensor.is_contiguous() and not tensor.is_inference()
