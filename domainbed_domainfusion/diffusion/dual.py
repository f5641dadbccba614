"""A dual number whose halves are tensors, the registry of the operations on it, and helpers of their rules."""

from collections.abc import Callable
from typing import Any, TypeVar

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
    """An operation has no forward-mode rule. It is an AttributeError too, so that `hasattr` returns False."""

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
    """A primal and a tangent, both (*shape). It can replace a tensor in every operation of RULES."""

    __slots__ = ("_pair", "_primal", "_tangent")

    def __init__(self, primal: Tensor, tangent: Tensor) -> None:
        self._primal, self._tangent = primal, tangent
        self._pair: Tensor | None = None

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
        """(2, *shape). It is made at the first use; the halves then become views of it."""
        if self._pair is None:
            pair = empty_pair(self._primal)
            pair[0], pair[1] = self._primal, self._tangent
            self._primal, self._tangent, self._pair = pair[0], pair[1], pair
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

    def __getattr__(self, name: str) -> Callable[..., Any]:
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


Operand = Dual | Tensor | float
#: In the signature of a function that returns a Dual for a Dual and a tensor for a tensor.
TensorOrDual = TypeVar("TensorOrDual", Tensor, Dual)


# Helpers of the rules.


def as_dual(x: Operand, like: Dual | Tensor) -> Dual:
    """x itself if it is a Dual; a constant becomes one whose tangent is zero."""
    if isinstance(x, Dual):
        return x
    x = x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device=like.device)
    return Dual(x, torch.zeros_like(x))


def aligned(a: Dual, b: Dual) -> tuple[Tensor, Tensor]:
    """Both pairs, with axes added so that they broadcast against each other."""
    return padded(a.pair, b), padded(b.pair, a)


def padded(pair: Tensor, other: Operand) -> Tensor:
    """`pair` with axes of size 1 after its first, where `other` has more axes than each half."""
    missing = other.ndim - pair.ndim + 1 if isinstance(other, (Tensor, Dual)) else 0
    return pair.reshape(2, *[1] * missing, *pair.shape[1:]) if missing > 0 else pair


def has_16_bits(x: Dual) -> bool:
    """Then a bias must be added before rounding, as in the module itself; otherwise LD loses accuracy."""
    return x.dtype.itemsize == 2


def varying(x: Operand, name: str) -> Dual:
    """The input x of a rule, which must be a Dual. If it is not, a weight is: raises UnsupportedOperation."""
    if not isinstance(x, Dual):
        raise UnsupportedOperation(f"{name} with weights that vary")
    return x


def shifted(dim: int) -> int:
    """An axis of the halves as an axis of the pair."""
    return dim + 1 if dim >= 0 else dim


def flat(sizes: tuple) -> tuple:
    """The sizes of `view(a, b)` and of `view((a, b))` as one tuple."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
