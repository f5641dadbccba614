"""Forward-mode differentiation through unmodified diffusers modules, by dual numbers.

A `Dual` is a tensor x (its primal) with a directional derivative ẋ (its tangent) of the same shape. A frozen module f
that gets a Dual instead of x returns the Dual (f(x), J_f ẋ), exact up to rounding. This takes about twice the work of
f(x) and stores nothing for a reverse pass:

- Linear operations run on both halves. They run in one call, on a pair (2, *shape) that is contiguous in memory, if the
  weights are larger than the input. In 16 bits this holds only without a bias, which must be added before rounding.
- The Jacobians of normalisation and softmax are symmetric, those of SiLU and GELU diagonal. Therefore torch's own
  backward kernel, called with ẋ instead of a gradient, returns J ẋ.
- Attention computes its scores for a block of queries at a time, so that they never fill the memory.

Parameters and everything else that is not a Dual are constants. The supported operations are the names in RULES; any
other raises UnsupportedOperation. torch's own forward mode supports more operations and is half as fast here.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dual import (
    RULES,
    Dual,
    Operand,
    UnsupportedOperation,
    aligned,
    as_dual,
    channels_last,
    empty_pair,
    flat,
    has_16_bits,
    padded,
    rule,
    shifted,
    varying,
)

__all__ = ["RULES", "Dual", "UnsupportedOperation"]

aten = torch.ops.aten
BLOCK = {"cpu": 2**21, "cuda": 2**27}  # attention scores in memory at once: in float32, 8 MB on a CPU, 512 MB on a GPU


# Sums and products.


@rule()
def add(a: Operand, b: Operand, *, alpha: float = 1) -> Dual:
    if not isinstance(b, Dual):
        assert isinstance(a, Dual)  # a rule is called for at least one Dual
        primal = torch.add(a.primal, b, alpha=alpha)
        return Dual(primal, a.tangent.to(primal.dtype).expand_as(primal))
    a = as_dual(a, like=b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return Dual.of_pair(torch.add(*aligned(a, b), alpha=alpha))
    pair = empty_pair(a.primal)
    torch.add(a.primal, b.primal, alpha=alpha, out=pair[0])
    torch.add(a.tangent, b.tangent, alpha=alpha, out=pair[1])
    return Dual.of_pair(pair)


@rule()
def sub(a: Operand, b: Operand) -> Dual:
    return add(a, b, alpha=-1)


@rule()
def mul(a: Operand, b: Operand) -> Dual:
    """(a b)' = a' b + a b'."""
    if not isinstance(a, Dual):
        a, b = b, a
    assert isinstance(a, Dual)
    if not isinstance(b, Dual):
        return Dual.of_pair(padded(a.pair, b) * b)
    first, second = aligned(a, b)
    product = first * second[0]
    product[1].addcmul_(first[0], second[1])
    return Dual.of_pair(product)


@rule()
def div(a: Dual, b: Tensor | float) -> Dual:
    if isinstance(b, Dual):
        raise UnsupportedOperation("division by a value that varies")
    return a if isinstance(b, (int, float)) and b == 1 else Dual.of_pair(padded(a.pair, b) / b)


@rule()
def linear(input: Dual, weight: Tensor, bias: Tensor | None = None) -> Dual:
    x = varying(input, "linear")
    if bias is not None and has_16_bits(x):
        return Dual(F.linear(x.primal, weight, bias), F.linear(x.tangent, weight))
    product = F.linear(x.pair, weight)
    if bias is not None:
        product[0].add_(bias)  # `+=` would copy the half onto itself
    return Dual.of_pair(product)


@rule()
def conv2d(input: Dual, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Dual:
    """One call for each half takes half the working memory. One call for both reads large weights only once."""
    x = varying(input, "conv2d")
    if weight.numel() < x.numel() or (bias is not None and has_16_bits(x)):
        return Dual(
            F.conv2d(x.primal, weight, bias, *args, **kwargs), F.conv2d(x.tangent, weight, None, *args, **kwargs)
        )
    product = F.conv2d(x.pair.flatten(0, 1), weight, None, *args, **kwargs).unflatten(0, (2, -1))
    if bias is not None:
        product[0].add_(bias[:, None, None])  # `+=` would copy the half onto itself
    return Dual.of_pair(product)


# Shapes: both halves change alike.


@rule("reshape", "view")
def reshape(x: Dual, *shape: Any) -> Dual:
    return Dual.of_pair(x.pair.reshape(2, *flat(shape)))


@rule()
def permute(x: Dual, *dims: Any) -> Dual:
    return Dual.of_pair(x.pair.permute(0, *(shifted(dim) % (x.ndim + 1) for dim in flat(dims))))


@rule()
def transpose(x: Dual, dim0: int, dim1: int) -> Dual:
    return Dual.of_pair(x.pair.transpose(shifted(dim0), shifted(dim1)))


@rule()
def flatten(x: Dual, start_dim: int = 0, end_dim: int = -1) -> Dual:
    return Dual.of_pair(x.pair.flatten(shifted(start_dim), shifted(end_dim)))


@rule()
def contiguous(x: Dual) -> Dual:
    return Dual.of_pair(x.pair.contiguous())


@rule()
def to(x: Dual, *args: Any, **kwargs: Any) -> Dual:
    pair = x.pair.to(*args, **kwargs)
    return x if pair is x.pair else Dual.of_pair(pair)


@rule()
def getitem(x: Dual, index: Any) -> Dual:
    return Dual.of_pair(x.pair[(slice(None), *(index if isinstance(index, tuple) else (index,)))])


@rule()
def chunk(x: Dual, chunks: int, dim: int = 0) -> tuple:
    return tuple(Dual.of_pair(part) for part in x.pair.chunk(chunks, shifted(dim)))


@rule()
def cat(tensors: Sequence[Dual | Tensor], dim: int = 0) -> Dual:
    some = next(x for x in tensors if isinstance(x, Dual))
    return Dual.of_pair(torch.cat([as_dual(x, like=some).pair for x in tensors], dim=shifted(dim)))


@rule()
def pad(input: Dual, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Dual:
    if mode == "constant" and value:
        return Dual(F.pad(input.primal, pad, mode, value), F.pad(input.tangent, pad))
    return Dual.of_pair(F.pad(input.pair.flatten(0, 1), pad, mode).unflatten(0, (2, -1)))


@rule()
def interpolate(input: Dual, *args: Any, **kwargs: Any) -> Dual:
    return Dual.of_pair(F.interpolate(input.pair.flatten(0, 1), *args, **kwargs).unflatten(0, (2, -1)))


# Functions of each element.


@rule()
def dropout(input: Dual, p: float = 0.5, training: bool = True, inplace: bool = False) -> Dual:
    if training and p > 0:
        raise UnsupportedOperation("dropout in training mode")
    return input


@rule()
def silu(input: Dual, inplace: bool = False) -> Dual:
    pair = empty_pair(input.primal)
    aten.silu.out(input.primal, out=pair[0])
    aten.silu_backward.grad_input(input.tangent, input.primal, grad_input=pair[1])
    return Dual.of_pair(pair)


@rule()
def relu(input: Dual, inplace: bool = False) -> Dual:
    return Dual(input.primal.relu(), input.tangent * (input.primal > 0))


@rule()
def gelu(input: Dual, approximate: str = "none") -> Dual:
    pair = empty_pair(input.primal)
    aten.gelu.out(input.primal, approximate=approximate, out=pair[0])
    aten.gelu_backward.grad_input(input.tangent, input.primal, approximate=approximate, grad_input=pair[1])
    return Dual.of_pair(pair)


@rule()
def exp(input: Dual) -> Dual:
    primal = input.primal.exp()
    return Dual(primal, primal * input.tangent)


@rule()
def clamp(input: Dual, min: float = -float("inf"), max: float = float("inf")) -> Dual:
    inside = (input.primal >= min) & (input.primal <= max)
    return Dual(input.primal.clamp(min, max), input.tangent * inside)


# Normalisation and attention.


@rule()
def group_norm(
    input: Dual, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Dual:
    # The CPU's kernels support both memory formats, the GPU's only the contiguous one.
    innermost = input.device.type == "cpu" and channels_last(input.primal)
    layout = torch.channels_last if innermost else torch.contiguous_format
    x, tangent = (_laid_out(half, layout) for half in (input.primal, input.tangent))
    sizes = (*x.shape[:2], x[0, 0].numel(), num_groups)
    primal, mean, rstd = aten.native_group_norm(x, weight, bias, *sizes, eps)
    tangent, _, _ = aten.native_group_norm_backward(tangent, x, mean, rstd, None, *sizes, [True, False, False])
    if weight is not None:
        tangent *= weight.view(-1, *[1] * (x.ndim - 2))
    return Dual(primal, tangent)


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """x in that memory format with its exact strides: torch 2.5's kernel reads them even for a batch of one."""
    strides = torch.empty(x.shape, device="meta", memory_format=layout).stride()
    return x.contiguous(memory_format=layout).as_strided(x.shape, strides)


@rule()
def layer_norm(
    input: Dual,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Dual:
    x, shape = input.primal.contiguous(), list(normalized_shape)
    primal, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, eps)
    tangent, _, _ = aten.native_layer_norm_backward(
        input.tangent.contiguous(), x, shape, mean, rstd, None, None, [True, False, False]
    )
    if weight is not None:
        tangent *= weight
    return Dual(primal, tangent)


@rule()
def scaled_dot_product_attention(
    query: Dual | Tensor,
    key: Dual | Tensor,
    value: Dual | Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Dual:
    """o = softmax(s q kᵀ) v of (..., L, D) each; ȯ = ṗ v + p v̇ with ṗ = J_softmax (s q̇ kᵀ + s q k̇ᵀ)."""
    if attn_mask is not None or dropout_p or is_causal or any(options.values()):
        raise UnsupportedOperation("attention with a mask, with dropout or with grouped heads")
    queries = mul(
        as_dual(query, like=key if isinstance(key, Dual) else value),
        query.shape[-1] ** -0.5 if scale is None else scale,
    )
    result = queries.primal.new_empty((2, *query.shape[:-1], value.shape[-1]))
    keys = torch.cat([key.primal, key.tangent], -1) if isinstance(key, Dual) else key
    values = torch.cat([value.primal, value.tangent], -1) if isinstance(value, Dual) else value
    rows = max(1, BLOCK.get(query.device.type, BLOCK["cpu"]) // (query[..., 0, 0].numel() * key.shape[-2]))
    for start in range(0, query.shape[-2], rows):
        block = slice(start, start + rows)
        _attend(queries[..., block, :], keys, values, result[..., block, :])
    return Dual.of_pair(result)


def _attend(query: Dual, keys: Tensor, values: Tensor, result: Tensor) -> None:
    """Attention of one block of scaled queries, written to `result`.

    `keys` and `values` are twice as wide if they vary: the primal, then the tangent.
    """
    width, depth = query.shape[-1], result.shape[-1]
    if keys.shape[-1] == width:
        scores, slopes = query.pair @ keys.transpose(-1, -2)
    else:
        scores = query.primal @ keys[..., :width].transpose(-1, -2)
        slopes = torch.cat([query.tangent, query.primal], -1) @ keys.transpose(-1, -2)
    weights = scores.softmax(-1)
    slopes = aten._softmax_backward_data(slopes, weights, -1, weights.dtype)
    mixed = weights @ values
    result[0] = mixed[..., :depth]
    result[1] = slopes @ values[..., :depth]
    if values.shape[-1] != depth:
        result[1].add_(mixed[..., depth:])
