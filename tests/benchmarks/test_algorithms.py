"""`benchmarks.algorithms`: which rows there are, what each is measured on, and the arithmetic. No speed is asserted."""

import json
import re
import sys

import pytest
import torch

from benchmarks import algorithms
from benchmarks.algorithms import Comparison, Measured, Row, hparams_of, results_of, rows_of, swept_hparams
from benchmarks.code_lines import code_lines
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pocket import digit_styles

SOURCE = '''"""A docstring
of two lines."""

import os  # 1


class Something:
    """Of a class."""

    # a comment
    text = """one string,

    and its three lines"""  # 2, with the lines 3 to 5 of text


def function(
    a="not a docstring",
):  # 6 to 8
    r"""Of a function,
    in two lines.
    """
    "a string that stands alone"  # 9
    return (
        a
        # a comment
    ), """ü"""  # 10 to 12


async def other():
    """Nothing else."""
'''


@pytest.fixture
def small(monkeypatch):
    """A run is one epoch of two steps, on environments of 20 images."""
    for name, value in (("EPOCH", 2), ("EPOCHS", 1), ("BATCH", 2), ("PREDICTED", 2)):
        monkeypatch.setattr(algorithms, name, value)
    monkeypatch.setattr(digit_styles, "PER_CLASS", 2)


def test_lines_of_code_are_those_with_a_token_of_code():
    """import, class, text (3), def (3), the lone string, return (3, one with a comment alone), async def."""
    assert code_lines(SOURCE) == 1 + 1 + 3 + 3 + 1 + 3 + 1
    assert code_lines('"""Alone."""\n') == code_lines("") == code_lines("# nothing\n\n") == 0
    assert code_lines('def f(): "on one line"\n') == 1


def test_every_registered_algorithm_has_a_row():
    """minibed itself has ERM alone. PEGO's backbone is another, so ERM has a second row."""
    assert set(host.our_algorithms()) == set(host.algorithms.ALGORITHMS) - {"ERM"}
    rows = rows_of(host.our_algorithms())
    assert list(rows) == ["ERM", "ERM, tiny_vit", *host.our_algorithms()]
    assert {name for name, row in rows.items() if row.reference != "ERM"} == {"PEGO", "ERM, tiny_vit"}
    for name, row in rows.items():
        assert row.algorithm == name.split(",")[0] and row.hparams["batch_size"] == 16
        assert row.hparams["backbone"] == rows[row.reference].hparams["backbone"]
        assert rows[row.reference].algorithm == "ERM"


def test_the_settings_are_the_sweeps():
    """The budgets are a fifteenth: an epoch has 5 steps in place of 75. SAM's are not those of the weight average."""
    swept = swept_hparams()
    generating = hparams_of("DomainFusion", swept)
    assert (generating["generation_interval"], generating["generation_budget"]) == (1, 40)
    assert hparams_of("CDGA", swept)["generation_budget"] == 53 and hparams_of("CDGA", swept)["strength"] == 0.75
    assert hparams_of("ITTA", swept)["itta_stages"] == "123"
    assert "weight_average" not in swept["SAM"] and hparams_of("SAM", swept)["pretrained"] is False
    assert hparams_of("DiffusionTTA", swept)["test_time_when"] == "every"


def test_whose_predictions_are_not_erms():
    own = {name for name, row in rows_of(host.our_algorithms()).items() if row.own_predict}
    zero_shot = {"DiffusionClassifier", "TextToImageClassifier"}
    assert {"DSI", "SDA", "DiffusionTTA", "ITTA", "AdaNPC"} | zero_shot <= own
    assert not own & {"ERM", "ERM, tiny_vit", "SAM", "PEGO", "DomainFusion", "CDGA"}


class Recorded:
    """Stands in for an algorithm: it keeps what it is given."""

    def __init__(self):
        self.training, self.seen = True, []

    def update(self, minibatches):
        self.seen.append(("step", self.training, torch.cat([x.flatten() for x, _ in minibatches])))
        return {"generated_images": float(len(self.seen) == 1)}

    def eval(self):
        self.training = False
        return self

    def predict(self, x):
        self.seen.append(("predict", self.training, x.flatten()))


def test_all_have_the_same_minibatches_and_predict_new_images_in_eval_mode(small, tmp_path, monkeypatch):
    made = []
    comparison = Comparison(rows_of(["SAM", "DSI"]), tmp_path)
    monkeypatch.setattr(comparison, "built", lambda name, steps: made.append((name, Recorded())) or made[-1][1])
    comparison.time(1, counted=False)
    assert comparison.measured["SAM"].steps == []
    for _ in range(2):
        comparison.time(2)
    assert [name for name, _ in made] == ["ERM", "SAM", "DSI"] * 3  # new ones in each repeat
    erm, sam, dsi = (each.seen for _, each in made[-3:])
    assert [(what, training) for what, training, _ in dsi] == [("step", True)] * 2 + [("predict", False)] * 2
    assert [what for what, _, _ in sam] == ["step"] * 2 and len(erm) == 4
    assert all(torch.equal(a[2], b[2]) for a, b in zip(erm, dsi)) and torch.equal(erm[0][2], sam[0][2])
    assert not torch.equal(erm[0][2], erm[1][2])
    first, others = (images.view(-1, 3, 32, 32) for _, _, images in dsi[2:])
    assert len(first) == 1 and len(others) == algorithms.PREDICTED
    assert len({image.numpy().tobytes() for image in (*first, *others)}) == 1 + algorithms.PREDICTED
    measured = comparison.measured["DSI"]
    assert measured.generated == [True, False] * 2 and len(measured.steps) == 4
    assert len(measured.first_image) == len(measured.images) == 2 and comparison.measured["SAM"].images == []


def test_ratios_are_to_erm_with_the_same_backbone():
    erm = Measured([1, 2, 4, 1], [False] * 4, [1, 1], [16, 32], 10 * 2**20, 2**20)
    other = Measured([10, 10, 10, 10], [False] * 4, training_bytes=40 * 2**20)
    generating = Measured([9, 6, 20, 3], [True, False, True, False], [7, 9], [64, 64], 30 * 2**20, 5 * 2**20)
    pego = Measured([20, 30, 20, 30], [False] * 4, training_bytes=20 * 2**20)
    measured = {"ERM": erm, "ERM, tiny_vit": other, "DSI": generating, "PEGO": pego}
    rows = {name: Row(name.split(",")[0], {}, "ERM") for name in ("ERM", "DSI")}
    rows |= {name: Row(name.split(",")[0], {}, "ERM, tiny_vit") for name in ("ERM, tiny_vit", "PEGO")}
    results = results_of(measured, rows, repeats=2)
    assert {name: ratio.median for name, ratio in results.ratios.items()} == {
        "step_DSI": 3,  # 6 / 2 and 3 / 1
        "run_DSI": (15 / 3 + 23 / 5) / 2,
        "image_DSI": 3,  # 64 / 16 and 64 / 32
        "step_PEGO": 2.5,
        "run_PEGO": 2.5,
    }
    training, prediction = ([dict(zip(table.columns, row)) for row in table.rows] for table in results.tables)
    assert [row["algorithm"] for row in training] == list(measured)
    assert training[2]["seconds of a run's step"] == "9.500 (8.500–10.500)"  # 15 and 23 seconds of two steps
    assert [row["memory ÷ ERM"] for row in training] == ["1.00", "1.00", "3.00", "0.50"]
    assert training[0]["code lines"] == "" and training[2]["module"] == "dsi.py"
    assert [row["algorithm"] for row in prediction] == ["ERM", "DSI"]
    assert prediction[1]["seconds of an image"] == "4.0000 (4.0000–4.0000)"
    assert (prediction[1]["first prediction (s)"], prediction[1]["memory ÷ ERM"]) == ("8.000 (7.500–8.500)", "5.00")


def test_the_command_line(small, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.json"
    arguments = ["--algorithms", "ERM", "DomainFusion", "DSI", "PEGO", "--repeats", "1", "--data_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks.algorithms", *arguments, "--output", str(output)])
    assert algorithms.main() == 0
    printed = capsys.readouterr().out
    parts = {"DomainFusion": ["step", "run"], "DSI": ["step", "run", "image"], "PEGO": ["step", "run"]}
    ratios = [f"{part}_{name}" for name, each in parts.items() for part in each]
    assert re.findall(r"^(\w+) \d+\.\d\d$", printed, re.MULTILINE) == ratios
    assert output.with_suffix(".md").read_text("utf-8").strip() == printed.strip()
    content = json.loads(output.read_text("utf-8"))
    assert content["machine"]["command"].startswith("python -m benchmarks.algorithms --algorithms ERM DomainFusion")
    training, prediction = content["tables"]
    assert [row["algorithm"] for row in training] == ["ERM", "ERM, tiny_vit", "DomainFusion", "DSI", "PEGO"]
    assert [row["algorithm"] for row in prediction] == ["ERM", "DSI"]
    assert all(float(row["memory (MB)"]) > 0 for row in training + prediction)
    assert len(content["seconds"]["DomainFusion, steps"]) == 2


def test_bad_arguments_are_sentences(tmp_path):
    with pytest.raises(InputError, match="no algorithm of the plugin called 'SAMM': did you mean 'SAM'"):
        algorithms.run(["SAMM"], tmp_path, 1)
    with pytest.raises(InputError, match="--repeats must be at least 1"):
        algorithms.run(["SAM"], tmp_path, 0)
