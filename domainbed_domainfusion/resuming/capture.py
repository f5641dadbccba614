"""The state of an algorithm as plain values: everything that its attributes lead to.

The walk goes through modules, optimizers, schedulers, other objects, and lists and dicts of these. It takes parameters
with their gradients, buffers, optimizer and scheduler states, moving averages, counters, mode flags and numbers.
Functions, classes and the like have no state and are passed over. What copies and pickles of an algorithm leave out
(`__getstate__`) is left out here too.
"""

from collections import deque
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import values

#: Attributes of every module that are not its state: hooks and the like.
MODULE_INTERNALS = set(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
SCHEDULERS = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
WITH_STATE_DICT = (torch.optim.Optimizer, *SCHEDULERS)
WITHOUT_STATE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, torch.device, torch.dtype, torch.Size)

Node = dict[str, Any] | None


class Capture:
    """`tree`: the state of an object as JSON. `tensors`: what it refers to, on the CPU."""

    def __init__(self, root: Any):
        self.tensors: dict[str, Tensor] = {}
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no id is used twice
        self.tree = self._node(root)

    def store(self, tensor: Tensor) -> str:
        """Keep a copy of a tensor; returns its name in `tensors`."""
        name = str(len(self.tensors))
        self.tensors[name] = tensor.detach().cpu().contiguous().clone()
        return name

    def _node(self, value: Any) -> Node:
        if isinstance(value, WITHOUT_STATE):
            return None
        if values.is_data(value):
            return {"data": values.encode(value, self.store)}
        if id(value) in self._seen:
            return None
        self._seen.add(id(value))
        self._alive.append(value)
        if isinstance(value, torch.Generator):
            return {"generator": self.store(value.get_state())}
        if isinstance(value, WITH_STATE_DICT):
            return {"state_dict": values.encode(state_dict_data(value), self.store), "class": type(value).__name__}
        if isinstance(value, dict):
            children = [[values.encode(key, self.store), self._node(each)] for key, each in value.items()]
            return {"items": [child for child in children if child[1] is not None]}
        if isinstance(value, (list, tuple, deque)):
            children = [[i, self._node(each)] for i, each in enumerate(value)]
            return {"items": [child for child in children if child[1] is not None]}
        attributes = attributes_of(value)
        nodes = {name: self._node(each) for name, each in attributes.items()}
        kept = {name: node for name, node in nodes.items() if node is not None}
        return {"object": kept, "class": type(value).__name__}


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object that belong to its state; none if it has no `__dict__`."""
    own = getattr(type(value), "__getstate__", None)
    attributes = value.__getstate__() if own not in (None, getattr(object, "__getstate__", None)) else None
    if not isinstance(attributes, dict):
        attributes = getattr(value, "__dict__", {})
    left_out = MODULE_INTERNALS if isinstance(value, nn.Module) else set()
    return {name: each for name, each in attributes.items() if name not in left_out}


def state_dict_data(value: Any) -> dict[str, Any]:
    """The `state_dict` of an optimizer or a scheduler without its functions."""
    return {name: each for name, each in value.state_dict().items() if values.is_data(each)}
