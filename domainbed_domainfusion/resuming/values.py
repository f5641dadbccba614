"""Nested plain values as JSON, with the tensors apart: no pickle, and every value comes back with its own type.

Lists, tuples, dicts, sets and deques become tagged JSON objects. Keys of a dict may be numbers or tuples. A tensor
becomes a reference that `store` returns.
"""

import base64
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Store = Callable[[Tensor], Any]  # keeps a tensor and returns its reference, a JSON value
Fetch = Callable[[Any], Tensor]  # the tensor of a reference, on the CPU

PLAIN = (type(None), bool, int, float, str)


def is_data(value: Any) -> bool:
    """Whether `encode` takes the value."""
    if type(value) in PLAIN or isinstance(value, (Tensor, np.generic)):
        return True
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, dict):
        return all(is_data(key) and is_data(each) for key, each in value.items())
    return type(value) in (list, tuple, set, deque) and all(map(is_data, value))


def encode(value: Any, store: Store) -> Any:
    """A JSON value. Raises TypeError for a value that `is_data` refuses."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        kind = "parameter" if isinstance(value, torch.nn.Parameter) else "tensor"
        encoded = {kind: store(value), "device": value.device.type, "grad": value.requires_grad and value.is_leaf}
        if value.is_leaf and value.grad is not None:
            encoded["gradient"] = store(value.grad)
        return encoded
    if isinstance(value, np.generic):
        return {"numpy": [value.dtype.str, base64.b64encode(value.tobytes()).decode()]}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.size else torch.empty(0)
        return {"array": store(content), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, dict):
        tag = "ordered" if isinstance(value, OrderedDict) else "dict"
        return {tag: [[encode(key, store), encode(each, store)] for key, each in value.items()]}
    if type(value) in (list, tuple, set, deque):
        encoded = {type(value).__name__: [encode(each, store) for each in value]}
        if isinstance(value, deque):
            encoded["maxlen"] = value.maxlen
        return encoded
    raise TypeError(f"a {type(value).__name__} is not plain data")


def decode(encoded: Any, fetch: Fetch) -> Any:
    """The value of a JSON value that `encode` has made. Tensors come back on the kind of device they were on."""
    if not isinstance(encoded, dict):
        return encoded
    if "tensor" in encoded or "parameter" in encoded:
        return _tensor(encoded, fetch)
    if "numpy" in encoded:
        dtype, content = encoded["numpy"]
        return np.frombuffer(base64.b64decode(content), dtype=np.dtype(dtype))[0]
    if "array" in encoded:
        content = fetch(encoded["array"]).numpy().tobytes()
        return np.frombuffer(content, dtype=np.dtype(encoded["dtype"])).reshape(encoded["shape"]).copy()
    for tag, mapping in (("dict", dict), ("ordered", OrderedDict)):
        if tag in encoded:
            return mapping((decode(key, fetch), decode(each, fetch)) for key, each in encoded[tag])
    for kind in (list, tuple, set):
        if kind.__name__ in encoded:
            return kind(decode(each, fetch) for each in encoded[kind.__name__])
    return deque((decode(each, fetch) for each in encoded["deque"]), maxlen=encoded["maxlen"])


def _tensor(encoded: dict, fetch: Fetch) -> Tensor:
    content = fetch(encoded["parameter"] if "parameter" in encoded else encoded["tensor"]).to(encoded["device"])
    if "parameter" in encoded:
        content = torch.nn.Parameter(content, requires_grad=encoded["grad"])
    else:
        content.requires_grad_(encoded["grad"])
    if "gradient" in encoded:
        content.grad = fetch(encoded["gradient"]).to(content.device)
    return content


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor in their order, whatever its dtype, strides and device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def inline(tensor: Tensor) -> Any:
    """A `Store` for small tensors: the reference itself holds the values."""
    return [
        str(tensor.dtype).removeprefix("torch."),
        list(tensor.shape),
        base64.b64encode(tensor_bytes(tensor)).decode(),
    ]


def inlined(reference: Any) -> Tensor:
    """The `Fetch` of `inline`."""
    dtype, shape, content = reference
    if 0 in shape:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    values = torch.frombuffer(bytearray(base64.b64decode(content)), dtype=torch.uint8)
    return values.view(getattr(torch, dtype)).reshape(shape)
