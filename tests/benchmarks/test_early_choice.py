"""`benchmarks.early_choice`: which choices are compared with which, and the shares."""

import json
import sys

import pytest
import torch

from benchmarks import early_choice
from benchmarks.host_run import HostData
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pocket import digit_styles


@pytest.fixture
def small(monkeypatch, tmp_path):
    """DigitStyles with 20 images in each environment; in-splits of 8."""
    monkeypatch.setattr(digit_styles, "PER_CLASS", 2)
    data = host.datasets.get_dataset_class(early_choice.DATASET)(str(tmp_path), [3], {})
    return HostData(data, 4, "cpu", epoch=2, test_env=3)


def test_the_images_are_training_images_of_each_domain_in_turn(small):
    x, y = small.training_images(7)
    for i in range(7):
        image, label = small.in_splits[i % 3][i // 3]
        torch.testing.assert_close(x[i] / 2 + 0.5, image, atol=1e-6, rtol=0)
        assert y[i] == label


def test_shares_are_of_the_images_whose_choice_is_the_same(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(digit_styles, "PER_CLASS", 4)
    monkeypatch.setattr(early_choice, "EPOCH", 2)
    monkeypatch.setattr(early_choice, "trained_judge", lambda data, steps: object())
    choices = {  # early_choice → content, style, evaluations
        None: ([0, 1, 2, 0], [1, 1, 1, 1], 200),
        1: ([0, 2, 2, 1], [0, 0, 1, 1], 50),
        2: ([0, 1, 2, 0], [1, 1, 1, 0], 150),
        3: ([1, 2, 0, 1], [0, 0, 0, 0], 180),
    }
    asked = []

    def made(generation, x, y):
        asked.append((generation.sampler.steps, generation.early))
        content, style, evaluations = choices[generation.early if generation.early in choices else 3]
        return torch.tensor(content), torch.tensor(style), evaluations

    monkeypatch.setattr(early_choice, "generated", made)
    output = tmp_path / "early.json"
    words = ["early_choice", "--data_dir", str(tmp_path), "--output", str(output), "--images", "4"]
    monkeypatch.setattr(sys, "argv", words)
    assert early_choice.main() == 0
    assert asked == [*((4, k) for k in (None, 1, 2, 3)), *((12, k) for k in (None, 1, 2, 3, 4, 5, 6, 7, 8))]
    digits, paper = json.loads(output.read_text())["tables"]
    rows = [list(row.values()) for row in digits]
    assert rows == [
        ["4", "1", "50 %", "50 %", "25 %", "25 %"],
        ["4", "2", "100 %", "75 %", "75 %", "75 %"],
        ["4", "3", "0 %", "0 %", "0 %", "90 %"],
    ]
    assert [row["choice after"] for row in paper] == [str(k) for k in range(1, 9)]
    assert "| 4 | 2 | 100 % | 75 % | 75 % | 75 % |" in capsys.readouterr().out


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be at least 1"):
        early_choice.run(tmp_path, 0, 1)
