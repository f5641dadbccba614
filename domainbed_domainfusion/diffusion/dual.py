"""A dual number whose halves are tensors, and the registry of the operations it knows."""

from collections.abc import Callable

import torch
from torch import Tensor

RULES: dict[str, Callable] = {}  # torch's name of an operation -> its rule; filled by `forward_mode`


def rule(*names: str) -> Callable:
    """Register a rule under the torch names (functions, methods, operators) that it differentiates."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names or (function.__name__,), function))
        return function

    return register


class UnsupportedOperation(NotImplementedError, AttributeError):
    """An operation of the module has no forward-mode rule; an AttributeError, so that `hasattr` stays harmless."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Forward-mode differentiation has no rule for {name}: use the reverse gradient mode, or add "
            "a rule to diffusion/forward_mode.py."
        )


def channels_last(x: Tensor) -> bool:
    """Whether x (B, C, H, W) has its channels innermost in memory."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def empty_pair(like: Tensor) -> Tensor:
    """(2, *shape) for two halves, each in the memory format of `like`."""
    if not channels_last(like):
        return like.new_empty((2, *like.shape))
    both = torch.empty(
        (2 * len(like), *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
    return both.unflatten(0, (2, -1))


class Dual:
    """A primal and a tangent, both (*shape); stands in for a tensor in every operation of RULES."""

    __slots__ = ("_pair", "_primal", "_tangent")

    def __init__(self, primal: Tensor, tangent: Tensor) -> None:
        self._primal, self._tangent, self._pair = primal, tangent, None

    @classmethod
    def of_pair(cls, pair: Tensor) -> "Dual":
        """From one tensor (2, *shape): the primal, then the tangent."""
        dual = cls(pair[0], pair[1])
        dual._pair = pair
        return dual

    @property
    def primal(self) -> Tensor:
        return self._primal

    @property
    def tangent(self) -> Tensor:
        return self._tangent

    @property
    def pair(self) -> Tensor:
        """(2, *shape); made at the first use, when the halves become views of it."""
        if self._pair is None:
            self._pair = empty_pair(self._primal)
            self._pair[0], self._pair[1] = self._primal, self._tangent
            self._primal, self._tangent = self._pair[0], self._pair[1]
        return self._pair

    shape = property(lambda self: self._primal.shape)
    dtype = property(lambda self: self._primal.dtype)
    device = property(lambda self: self._primal.device)
    ndim = property(lambda self: self._primal.ndim)
    is_cuda = property(lambda self: self._primal.is_cuda)
    requires_grad = property(lambda self: False)

    def size(self, *dim):
        return self._primal.size(*dim)

    def dim(self) -> int:
        return self._primal.dim()

    def numel(self) -> int:
        return self._primal.numel()

    def __getattr__(self, name: str):
        """A tensor method, e.g. `x.view(...)`, is the rule of that name."""
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in RULES:
            raise UnsupportedOperation(name)
        return lambda *args, **kwargs: RULES[name](self, *args, **kwargs)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = function.__name__
        if name not in RULES:
            raise UnsupportedOperation(name)
        return RULES[name](*args, **(kwargs or {}))

    def __add__(self, other):
        return RULES["add"](self, other)

    def __radd__(self, other):
        return RULES["add"](self, other)

    def __sub__(self, other):
        return RULES["sub"](self, other)

    def __rsub__(self, other):
        return RULES["sub"](other, self)

    def __mul__(self, other):
        return RULES["mul"](self, other)

    def __rmul__(self, other):
        return RULES["mul"](self, other)

    def __truediv__(self, other):
        return RULES["div"](self, other)

    def __getitem__(self, index):
        return RULES["getitem"](self, index)
