"""`domainfusion data add --manifest`: images that lie anywhere, as the host's dataset; what is wrong in a sentence."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.data import own_datasets
from domainbed_domainfusion.hosting import context, host

from .. import forks

DOMAINS, CLASSES, IMAGES = ("day", "night"), ("hot dog", "zebra"), 5


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Images in folders that say nothing of class and domain, some of equal names, and a row for each."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(len(DOMAINS) * len(CLASSES) * IMAGES):
        path = f"camera {number % 5}/{number // 5:02d}.png"
        (tmp_path / "shots" / path).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        image.save(tmp_path / "shots" / path)
        domain, name = DOMAINS[number % 2], CLASSES[number // 2 % 2]
        found.append({"path": path, "class": name, "domain": domain})
    return found


@pytest.fixture(autouse=True)
def forgetful_host(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(host.datasets, "DATASETS", list(host.datasets.DATASETS))
    yield
    vars(host.datasets).pop("Mine", None)
    context._current = context.TrainingContext()


def write(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        with open(file, "w", newline="", encoding="utf-8-sig") as opened:
            table = csv.DictWriter(opened, list(rows[0]) if rows else ["path", "class", "domain"])
            table.writeheader()
            table.writerows(rows)
    return file


def add(tmp_path, manifest, *more) -> int:
    data = str(tmp_path / "data")
    return cli.main(
        ["data", "add", "Mine", str(tmp_path / "shots"), "--manifest", str(manifest), "--data_dir", data, *more]
    )


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_each_image_has_the_class_and_domain_of_its_row(tmp_path, rows, ending, capsys):
    """By the bytes that the host's dataset opens: nothing else tells equal names apart."""
    manifest = write(tmp_path / f"m.{ending}", rows)
    assert add(tmp_path, manifest, "--image_size", "32", "--class_names", "sausage", "horse with stripes") == 0
    assert "2 environments, 2 classes, 20 images" in capsys.readouterr().out
    own_datasets.register_described(["--data_dir", str(tmp_path / "data")])
    made = host.datasets.get_dataset_class("Mine")(str(tmp_path / "data"), [0], {"data_augmentation": True})
    assert context.current().class_names == ["sausage", "horse with stripes"]
    expected = {(tmp_path / "shots" / row["path"]).read_bytes(): (row["domain"], row["class"]) for row in rows}
    found = {
        Path(path).read_bytes(): (made.ENVIRONMENTS[i], environment.classes[label])
        for i, environment in enumerate(made)
        for path, label in environment.samples
    }
    assert found == expected and len(expected) == len(rows)


def test_the_order_of_the_rows_changes_nothing(tmp_path, rows):
    """So that a table that was sorted anew gives the same splits."""
    add(tmp_path, write(tmp_path / "m.csv", rows))
    before = (tmp_path / "data" / "Mine" / "dataset.json").read_text()
    add(tmp_path, write(tmp_path / "m.csv", rows[::-1]))
    assert (tmp_path / "data" / "Mine" / "dataset.json").read_text() == before
    assert len(list((tmp_path / "data" / "Mine").iterdir())) == 2


def test_a_second_manifest_replaces_the_first(tmp_path, rows):
    add(tmp_path, write(tmp_path / "m.csv", rows))
    assert add(tmp_path, write(tmp_path / "m.csv", [row for row in rows if row["path"] != rows[0]["path"]])) == 0
    root = own_datasets.described_folder("Mine", tmp_path / "data")
    assert len(list(root.rglob("*.png"))) == len(rows) - 1


@pytest.mark.parametrize("inside", [True, False])
def test_links_hold_when_the_data_folder_moves(tmp_path, rows, inside):
    """With the images, if they lie in it; without them, if they do not."""
    manifest = write(tmp_path / "m.csv", rows)
    if inside:
        (tmp_path / "data").mkdir()
        (tmp_path / "shots").rename(tmp_path / "data" / "shots")
        (tmp_path / "shots").symlink_to(tmp_path / "data" / "shots")
    assert add(tmp_path, manifest) == 0
    (tmp_path / "moved").mkdir()
    (tmp_path / "data").rename(tmp_path / "moved" / "data")
    root = own_datasets.described_folder("Mine", tmp_path / "moved" / "data")
    assert all(path.exists() for path in root.rglob("*.png")) and len(list(root.rglob("*.png"))) == len(rows)


def test_a_sweep_of_it_and_its_table(tmp_path, rows):
    """In processes of their own: sweep, collect_results, data check, report."""
    more = ["--image_size", "32", "--workers", "0", "--environments", "Day", "Night"]
    assert add(tmp_path, write(tmp_path / "m.csv", rows), *more) == 0
    scripts, ours = "domainbed_domainfusion.minibed.scripts", "domainbed_domainfusion.cli"
    data, output = ["--data_dir", str(tmp_path / "data")], str(tmp_path / "runs")
    sweep = ["launch", "--algorithms", "ERM", "--datasets", "Mine", "--single_test_envs", "--n_hparams", "1"]
    sweep += ["--n_trials", "1", "--steps", "2", "--command_launcher", "local", "--skip_confirmation", *data]
    sweep += ["--hparams", '{"batch_size": 2, "backbone": "mnist_cnn"}', "--output_dir", output]
    for command in (
        [f"{scripts}.sweep", *sweep],
        [f"{scripts}.collect_results", "--input_dir", output],
        [ours, "data", "check", "Mine", *data],
        [ours, "report", "--input_dir", output, "--output", str(tmp_path / "report.html")],
    ):
        ended = forks.run(*command)
        assert ended.returncode == 0, ended.stderr
        if "collect_results" in command[0]:
            header = next(line for line in ended.stdout.splitlines() if line.startswith("Algorithm"))
            assert header.split() == ["Algorithm", "Day", "Night", "Avg"]
    assert 'class="number">Night<' in (tmp_path / "report.html").read_text()


def _with(rows, number, **values):
    return [{**row, **values} if i == number else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda rows, _: [], "m.json names no image: it needs a row for each, with path, class, domain."),
        (lambda rows, _: _with(rows, 1, domain=" "), "m.json, entry 2: there is no domain."),
        (lambda rows, _: [{"path": "x.png"}], "m.json, entry 1: there is no class and no domain."),
        (lambda rows, _: {"images": rows}, r"m.json cannot be read as a manifest \(not a list of objects\)"),
        (lambda rows, _: _with(rows, 2, path="../x.png"), "entry 3: ../x.png is not inside the folder: paths start"),
        (lambda rows, _: _with(rows, 2, path="a/../../x.png"), "entry 3: a/../../x.png is not inside the folder"),
        (lambda rows, _: _with(rows, 2, path="/etc/x.png"), "entry 3: /etc/x.png is not inside the folder"),
        (lambda rows, _: _with(rows, 0, **{"class": "a/b"}), "entry 1: the class 'a/b' cannot be a folder's name"),
        (lambda rows, _: _with(rows, 0, domain=".."), "entry 1: the domain '..' cannot be a folder's name"),
        (
            lambda rows, _: _with(rows, 0, domain="Day"),
            "The domains Day, day in .* differ in upper and lower case alone",
        ),
        (lambda rows, _: _with(rows, 0, **{"class": "Zebra"}), "The classes Zebra, zebra in .* differ in upper and"),
        (
            lambda rows, _: [row for row in rows if (row["domain"], row["class"]) != ("night", "zebra")],
            "The domain night in .* has no image of zebra: every domain needs images of every class.",
        ),
        (lambda rows, _: [{**row, "class": "zebra"} for row in rows], "has the class zebra alone, but a classifier"),
        (lambda rows, _: [*rows, {**rows[3], "class": "zebra"}], "m.json has camera 3/00.png twice: an image has one"),
        (lambda rows, _: _with(rows, 0, path="./camera 1/00.png"), "m.json has camera 1/00.png twice"),
        (lambda rows, _: _with(rows, 0, path="notes.txt"), "1 of 20 paths in .* have no image's extension, the first"),
        (lambda rows, _: _with(rows, 0, path="gone.png"), "1 of 20 paths in .* are no files, or links to nowhere, the"),
        (
            lambda rows, shots: (
                (shots / "camera 0" / "link.png").symlink_to("nowhere.png") or _with(rows, 0, path="camera 0/link.png")
            ),
            "are no files, or links to nowhere, the first is camera 0/link.png: mend .*, or take out its row.",
        ),
        (
            lambda rows, shots: (shots / "camera 0" / "00.png").write_text("<html>") and rows,
            "1 images cannot be read whole, the first is .*camera 0/00.png: copy it anew into",
        ),
    ],
)
def test_a_bad_manifest_is_one_sentence_and_nothing_is_written(tmp_path, rows, capsys, spoil, sentence):
    manifest = write(tmp_path / "m.json", spoil(rows, tmp_path / "shots"))
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert add(tmp_path, manifest) == 1
    printed = capsys.readouterr().err
    assert re.search(sentence, printed) and len(printed.strip().splitlines()) == 1
    left = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - set(before)
    assert left <= {tmp_path / "data"}


@pytest.mark.parametrize(
    "content, sentence",
    [
        (
            "path,klass,domain\na.png,x,y\n",
            "m.csv lacks the column class: its first line must name path, class, domain.",
        ),
        ("", "m.csv names no image"),
        ("path,class,domain\n", "m.csv names no image"),
        ("path,class,domain\na.png,x\n", "m.csv, line 2: there is no domain."),
        (None, "m.csv cannot be read as a manifest"),
    ],
)
def test_a_bad_csv(tmp_path, rows, capsys, content, sentence):
    if content is not None:
        (tmp_path / "m.csv").write_text(content)
    assert add(tmp_path, tmp_path / "m.csv") == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--class_names", "a", "a"], "The class names a, a have a twice: tables could not tell them."),
        (["--environments", "D", "D"], "The environments D, D have D twice"),
        (["--environments", "D"], r"must hold one folder per environment \(1: D\), but holds 2"),
        (["--class_names", "a"], "There are 1 class names, but .* has 2 classes"),
        (["--steps", "0"], "The dataset's steps is 0: give 1 or more."),
    ],
)
def test_a_bad_description_leaves_what_was_there(tmp_path, rows, capsys, flags, sentence):
    manifest = write(tmp_path / "m.csv", rows)
    assert add(tmp_path, manifest, *flags) == 1
    assert re.search(sentence, capsys.readouterr().err) and list((tmp_path / "data").iterdir()) == []
    add(tmp_path, manifest)
    before = sorted((tmp_path / "data").rglob("*"))
    assert add(tmp_path, write(tmp_path / "m.csv", rows[1:]), *flags) == 1
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_images_that_the_host_reads_in_its_own_way_are_warned_of(tmp_path, rows, capsys):
    shots = tmp_path / "shots"
    exif = Image.Exif()
    exif[274] = 6
    Image.new("CMYK", (8, 8), (1, 2, 3, 4)).save(shots / "c.jpg")
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(shots / "deep.png")
    Image.new("RGB", (8, 8)).save(shots / "turned.png", exif=exif)
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(shots / "moving.png", save_all=True, append_images=frames[1:])
    rows += [
        {"path": name, "class": "zebra", "domain": "day"} for name in ("c.jpg", "deep.png", "turned.png", "moving.png")
    ]
    assert add(tmp_path, write(tmp_path / "m.csv", rows)) == 0
    printed = capsys.readouterr().out
    for what in ("1 image is CMYK and not RGB", "is cut at 255", "has an EXIF rotation", "1 image is animated"):
        assert re.search(f"warning: .*{what}", printed)
    shutil.rmtree(tmp_path / "data")
