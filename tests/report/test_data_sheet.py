"""`domainfusion data sheet`: which images stand where, the generated ones below their own originals."""

import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.data import own_datasets
from domainbed_domainfusion.data.own_datasets import add, describe
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.report import data_sheet
from domainbed_domainfusion.report.data_sheet import write_data_sheet

ENVIRONMENTS, CLASSES = ("day", "dusk", "night"), ("big_cat", "dog")
#: The files of two environments that the run has generated from: every second one.
USED = {0: {0: "day/big_cat/1.png", 1: "day/dog/1.png", 2: "day/dog/3.png"}, 2: {7: "night/dog/1.png"}}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three environments of two classes of four images; an image's colour says which it is."""
    for e, environment in enumerate(ENVIRONMENTS):
        for c, name in enumerate(CLASSES):
            for i in range(4):
                path = tmp_path / "pets" / environment / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((10, 10, 3), (60 * e, 60 * c, 60 * i), np.uint8)).save(path)
    add(describe("Pets", tmp_path / "pets", tmp_path / "data"), tmp_path / "data")
    monkeypatch.setattr(host.datasets, "DATASETS", list(host.datasets.DATASETS))
    own_datasets.register_described(["--data_dir", str(tmp_path / "data")])
    yield tmp_path / "data"
    del host.datasets.Pets


@pytest.fixture
def run(monkeypatch):
    """A job of two rounds. The generated image of the file with index i has i + 100 everywhere."""
    environments = {str(e): {"name": ENVIRONMENTS[e], "files": {str(i): f for i, f in USED[e].items()}} for e in USED}
    keys = [(e, i) for e in USED for i in USED[e]]
    part = {
        "environment": torch.tensor([e for e, _ in keys]),
        "index": torch.tensor([i for _, i in keys]),
        "images": torch.stack([torch.full((3, 8, 8), i + 100, dtype=torch.uint8) for _, i in keys]),
    }
    saved = types.SimpleNamespace(
        rounds={1: {}, 2: {}},
        identity={"arguments": {"dataset": "Pets"}},
        sources={"environments": environments},
        parts=lambda number: iter([part] if number == 2 else []),
    )
    monkeypatch.setattr(data_sheet.SavedRun, "open", lambda folder: saved)
    return saved


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: the heads, and for each row its lines and the one colour of each picture."""
    calls, draw = [], data_sheet.draw

    def keep(heads, groups, top):
        calls.append((heads, [[(row.label, list(map(colour, row.cells))) for row in group] for group in groups]))
        return draw(heads, groups, top)

    def colour(cell):
        return None if cell is None else tuple(int(value) for value in cell[:, 0, 0])

    monkeypatch.setattr(data_sheet, "draw", keep)
    return calls


def test_a_block_for_each_environment_and_a_column_for_each_class(data, tmp_path, drawn):
    assert cli.main(["data", "sheet", "Pets", "--data_dir", str(data), "--output", str(tmp_path / "s.png")]) == 0
    ((heads, groups),) = drawn
    assert heads == ["big cat", "dog"]
    assert [[lines[0] for lines, _ in rows] for rows in groups] == [[name, ""] for name in ENVIRONMENTS]
    for e, rows in enumerate(groups):
        for _, cells in rows:
            assert [cell[:2] for cell in cells] == [(60 * e, 0), (60 * e, 60)]
        assert len({cells for _, cells in [(None, tuple(cells)) for _, cells in rows]}) == 2  # two different images
    with Image.open(tmp_path / "s.png") as image:
        assert image.width > 400


def test_what_a_run_made_stands_below_its_own_original(data, tmp_path, drawn, run):
    write_data_sheet("Pets", data, tmp_path / "s.png", job_folder=tmp_path)
    ((_, (day, dusk, night)),) = drawn
    assert [lines for lines, _ in dusk] == [("dusk", "left out"), ("", "left out")]
    assert [lines for lines, _ in day] == [
        ("day", "original"),
        ("", "generated", "in round 2"),
        ("", "original"),
        ("", "generated", "in round 2"),
    ]
    originals, made = [cells for _, cells in day[::2]], [cells for _, cells in day[1::2]]
    # Images that the run used come first; blue is 60 times the file's number.
    assert originals[0][0] == (0, 0, 60) and made[0][0] == (100,) * 3  # day/big_cat/1.png
    assert {originals[0][1][2], originals[1][1][2]} == {60, 180}  # day/dog/1.png and 3.png
    for row in range(2):
        assert made[row][1] == ((101,) * 3 if originals[row][1][2] == 60 else (102,) * 3)
    assert made[1][0] is None  # the second big cat was not used
    assert night[0][1][1] == (120, 60, 60) and night[1][1] == [None, (107,) * 3]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"output": "sheet.pdf"}, "sheet.pdf is not the name of a picture: give one that ends in .png."),
        ({"classes": ["dogs"]}, "There is no class called 'dogs': did you mean"),
        ({"images": 0}, "--images is 0, but a page takes 1 to 12 of this dataset."),
        ({"images": 13}, "--images is 13, but a page takes 1 to 12 of this dataset."),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(data, tmp_path, options, sentence):
    output = tmp_path / options.pop("output", "sheet.png")
    with pytest.raises(InputError) as raised:
        write_data_sheet("Pets", data, output, **options)
    assert sentence in str(raised.value)
    assert not output.exists()


def test_a_folder_without_images_is_one_sentence(data, tmp_path):
    shutil.rmtree(tmp_path / "pets")
    (tmp_path / "pets").mkdir()
    with pytest.raises(InputError, match="pets has no images in environment/class: `domainfusion data check` says"):
        write_data_sheet("Pets", data, tmp_path / "s.png")


def test_a_run_on_other_data_is_refused(data, tmp_path, run):
    run.identity = {"arguments": {"dataset": "PACS"}}
    with pytest.raises(InputError, match="is a run on PACS: give a job on Pets, or the name PACS."):
        write_data_sheet("Pets", data, tmp_path / "s.png", job_folder=tmp_path)
    run.identity = {"arguments": {"dataset": "Pets"}}
    run.sources = {"environments": {"0": {"name": "day", "files": {"0": "day/dog/elsewhere.png"}}}}
    with pytest.raises(InputError, match="used other images than those in .*: give the --data_dir that the run had."):
        write_data_sheet("Pets", data, tmp_path / "s.png", job_folder=tmp_path)
