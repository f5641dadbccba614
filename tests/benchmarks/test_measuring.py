"""The clock, the memory count and the search for a batch size, on quantities that are known."""

import json
import time

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peak_memory import extra_peak, largest
from benchmarks.results import Results, Table
from benchmarks.timing import Spread, interleaved, paired_ratio, seconds_of


def test_methods_take_turns_after_one_round_that_is_not_counted():
    called = []
    seconds = interleaved({name: lambda name=name: called.append(name) for name in "AB"}, 3, "cpu")
    assert "".join(called) == "AB" * 4
    assert {name: len(taken) for name, taken in seconds.items()} == {"A": 3, "B": 3}
    assert interleaved({"A": lambda: called.clear()}, 2, "cpu", warm_up=0)["A"][1:] and not called


def test_a_call_is_timed_whole():
    assert seconds_of(lambda: time.sleep(0.05), "cpu") >= 0.05


def test_a_ratio_pairs_what_was_measured_in_the_same_round():
    """Three quotients of 2 and one of 3: the machine's own slowing from round to round cancels."""
    assert paired_ratio([2, 20, 300, 2000], [1, 10, 100, 1000]) == Spread(2, 2, 2.25)
    with pytest.raises(ValueError):
        paired_ratio([1, 2], [1])


def test_memory_is_the_most_alive_at_once():
    held = torch.ones(10**6)  # alive before: not counted

    def method():
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        return second, third

    assert extra_peak(method, "cpu") == 4 * 4000
    assert len(held) == 10**6


def test_memory_sees_what_an_operator_takes_for_itself():
    """Attention written out keeps at least its scores, 64 x 64, of which nothing comes out."""
    q = torch.ones(1, 1, 64, 1)
    with sdpa_kernel(SDPBackend.MATH):
        assert extra_peak(lambda: F.scaled_dot_product_attention(q, q, q), "cpu") >= 4 * 64**2


@pytest.mark.parametrize("true", range(21))
def test_the_largest_batch_is_found(true):
    tried = []
    assert largest(lambda size: tried.append(size) or size <= true, 20) == min(true, 20)
    assert max(tried) <= 20 and len(tried) <= 10


def test_results_hold_the_single_measurements(tmp_path):
    results = Results(
        "LD",
        "tiny",
        {"batch": 2},
        [Table(["method", "seconds"], [["bare", "1.0"]])],
        {"R1_full": Spread(2.126, 2.0, 2.2)},
        ["A remark."],
        {"bare": [1.0, 1.5]},
    )
    results.write(tmp_path / "cpu.json", {"cpu": "some"})
    text = (tmp_path / "cpu.md").read_text("utf-8")
    assert text == (
        "## LD, tiny (batch 2)\n\n| method | seconds |\n| --- | --- |\n| bare | 1.0 |\n\nA remark.\n\n"
        "```\nR1_full 2.13\n```\n\ncpu: some\n"
    )
    content = json.loads((tmp_path / "cpu.json").read_text("utf-8"))
    assert content["ratios"]["R1_full"] == {"median": 2.126, "low": 2.0, "high": 2.2}
    assert content["tables"] == [[{"method": "bare", "seconds": "1.0"}]] and content["seconds"] == {"bare": [1.0, 1.5]}
