"""Nested values come back from JSON and tensors with their types, dtypes and keys."""

import json
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch

from domainbed_domainfusion.resuming import values

EXAMPLES = [
    None,
    True,
    -3,
    2**70,
    0.1,
    float("inf"),
    "é\n",
    [],
    (),
    (1, (2.5, "a"), [None]),
    {1: "a", "1": "b", (2, 3): {4}},
    OrderedDict([("b", 1), ("a", 2)]),
    deque([1, 2], maxlen=3),
    np.float32(0.1),
    np.int64(7),
    np.bool_(True),
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.zeros((0, 2)),
    np.array(["ab", "c"]),
    torch.tensor(0.1, dtype=torch.float64),
    torch.tensor([1, 2], dtype=torch.bfloat16),
    torch.tensor([[True], [False]]),
    torch.zeros(0, 3),
    torch.arange(6).reshape(2, 3).T,
    {"exp_avg": [torch.rand(2, generator=torch.Generator().manual_seed(0))], "step": torch.tensor(3.0)},
]


def same(one, other) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and np.shape(one) == np.shape(other) and bool(np.all(one == other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        ends = getattr(one, "maxlen", None) == getattr(other, "maxlen", None)
        return ends and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_values_come_back_as_they_were(value):
    tensors = {}

    def store(tensor):
        tensors[str(len(tensors))] = tensor.clone()
        return str(len(tensors) - 1)

    assert values.is_data(value)
    encoded = json.loads(json.dumps(values.encode(value, store)))
    assert same(values.decode(encoded, tensors.__getitem__), value)
    encoded = json.loads(json.dumps(values.encode(value, values.inline)))
    assert same(values.decode(encoded, values.inlined), value)


def test_not_a_number_comes_back():
    assert np.isnan(values.decode(json.loads(json.dumps(values.encode(float("nan"), values.inline))), values.inlined))


def test_a_parameter_comes_back_with_its_gradient():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    back = values.decode(json.loads(json.dumps(values.encode(parameter, values.inline))), values.inlined)
    assert isinstance(back, torch.nn.Parameter) and back.requires_grad and same(back.grad, parameter.grad)


@pytest.mark.parametrize(
    "value",
    [object(), len, [torch.nn.ReLU()], {"a": lambda: 0}, np.array([object()])],
    ids=["object", "function", "module", "lambda", "array of objects"],
)
def test_what_is_not_data_is_refused(value):
    assert not values.is_data(value)
    with pytest.raises(TypeError, match="is not plain data"):
        values.encode(value, values.inline)
