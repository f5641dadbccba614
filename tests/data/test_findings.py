"""`domainfusion data check`: planted defects are found and named; a whole dataset has none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from domainbed_domainfusion import cli
from domainbed_domainfusion.data import benchmarks, findings
from domainbed_domainfusion.data.layout import read_layout
from domainbed_domainfusion.data.samples import choose
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host

ENVIRONMENTS, CLASSES, IMAGES = ("art", "cartoon", "photo", "sketch"), ("dog", "horse"), 3


def write_image(path: Path, number: int, **save) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """PACS in small: 4 environments, 2 classes, 3 images in each. The published sizes are made to fit it."""
    numbers = iter(range(1000))
    for environment in ENVIRONMENTS:
        for name in CLASSES:
            for i in range(IMAGES):
                write_image(tmp_path / "PACS" / environment / name / f"{i}.png", next(numbers))
    published = benchmarks.Benchmark("PACS", (6, 6, 6, 6), 2, sources=("https://example.org/pacs",))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", published)
    return tmp_path / "PACS"


def found(root: Path) -> dict[str, findings.Finding]:
    check = findings.check("PACS", root.parent)
    assert len({finding.kind for finding in check.findings}) == len(check.findings)
    return {finding.kind: finding for finding in check.findings}


def test_a_whole_dataset_has_no_finding(root, capsys):
    assert cli.main(["data", "check", "PACS", "--data_dir", str(root.parent)]) == 0
    printed = capsys.readouterr().out
    assert "4 environments, 2 classes, 24 images" in printed and "Nothing is wrong with it." in printed


def test_the_layout_is_torchvisions(root):
    """The same images in the same order as the reader that the hosts use, with nested folders, links and odd names."""
    write_image(root / "photo" / "dog" / "deeper" / "x.JPG", 500)
    (root / "photo" / "dog" / "notes.txt").write_text("no image")
    (root / "photo" / "horse" / "link.png").symlink_to(root / "art" / "dog" / "0.png")
    layout = read_layout(root)
    for environment in ENVIRONMENTS:
        theirs = ImageFolder(str(root / environment))
        assert list(layout.environments[environment]) == theirs.classes
        ours = [path for paths in layout.environments[environment].values() for path in paths]
        assert sorted(map(str, ours)) == sorted(path for path, _ in theirs.samples)
    assert [path.name for path in layout.ignored] == ["notes.txt"]


def cut_short(root):
    path = root / "art" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-200])


def dangling(root):
    (root / "art" / "dog" / "1.png").unlink()
    (root / "art" / "dog" / "1.png").symlink_to("nowhere.png")


def other_case(root):
    shutil.copytree(root / "photo" / "dog", root / "photo" / "Dog")
    shutil.rmtree(root / "photo" / "dog")


def cmyk(root):
    Image.new("CMYK", (8, 8), (1, 2, 3, 4)).save(root / "art" / "dog" / "1.jpg")
    (root / "art" / "dog" / "1.png").unlink()


def sixteen_bits(root):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(root / "art" / "dog" / "1.png")


def animated(root):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(root / "art" / "dog" / "1.png", save_all=True, append_images=frames[1:])


def rotated(root):
    exif = Image.Exif()
    exif[274] = 6
    write_image(root / "art" / "dog" / "1.png", 700, exif=exif)


@pytest.mark.parametrize(
    "plant, level, kind, sentence, file",
    [
        (cut_short, "error", "unreadable", "1 image cannot be read whole", "art/dog/1.png"),
        (dangling, "error", "dangling", "1 image is a link to nowhere", "art/dog/1.png"),
        (
            lambda root: shutil.copy(root / "art" / "dog" / "0.png", root / "sketch" / "dog" / "0.png"),
            "error",
            "duplicates-environments",
            "1 image lies in more than one environment",
            "sketch/dog/0.png",
        ),
        (
            lambda root: shutil.copy(root / "art" / "dog" / "0.png", root / "art" / "horse" / "0.png"),
            "error",
            "duplicates-classes",
            "one of the labels is wrong",
            "art/horse/0.png",
        ),
        (
            lambda root: shutil.copy(root / "art" / "dog" / "0.png", root / "art" / "dog" / "1.png"),
            "warning",
            "duplicates-class",
            "can be in the validation split",
            "art/dog/1.png",
        ),
        (cmyk, "warning", "mode", "1 image is CMYK and not RGB", "art/dog/1.jpg"),
        (sixteen_bits, "warning", "mode", "is cut at 255", "art/dog/1.png"),
        (animated, "warning", "animated", "the host reads its first frame", "art/dog/1.png"),
        (rotated, "warning", "turned", "which the host does not apply", "art/dog/1.png"),
        (
            lambda root: (root / "art" / "dog" / "Thumbs.db").write_bytes(b"x"),
            "warning",
            "ignored",
            "1 file is not read",
            "art/dog/Thumbs.db",
        ),
    ],
)
def test_a_planted_defect_is_the_one_finding(root, plant, level, kind, sentence, file):
    plant(root)
    (finding,) = found(root).values()
    assert (finding.level, finding.kind) == (level, kind)
    assert sentence in finding.sentence and file in finding.files and file in finding.sentence


def test_a_missing_image_and_a_missing_class_are_counted(root):
    (root / "cartoon" / "dog" / "2.png").unlink()
    shutil.rmtree(root / "sketch" / "horse")
    kinds = {finding.kind for finding in findings.check("PACS", root.parent).findings}
    sentences = " ".join(finding.sentence for finding in findings.check("PACS", root.parent).findings)
    assert kinds == {"published-images", "classes"}
    assert "cartoon has 5 images, but the published dataset has 6" in sentences
    assert "sketch has 3 images" in sentences and "sketch lacks the classes horse" in sentences


def test_names_that_differ_in_case_alone(root):
    other_case(root)
    kinds = {finding.kind: finding for finding in findings.check("PACS", root.parent).findings}
    assert "Dog, dog" in kinds["case"].sentence and "classes" in kinds and "published-classes" in kinds


def test_a_folder_without_environments(root):
    shutil.rmtree(root)
    root.mkdir()
    check = findings.check("PACS", root.parent)
    assert [finding.kind for finding in check.findings] == ["environments", "published-classes"]
    assert "0 environments, 0 classes, 0 images" in check.text()


def test_a_folder_too_many_and_an_empty_class(root):
    (root / "__MACOSX" / "dog").mkdir(parents=True)
    kinds = {finding.kind: finding for finding in findings.check("PACS", root.parent).findings}
    assert "There are 5 environments (__MACOSX, art" in kinds["environments"].sentence
    assert "__MACOSX/dog holds no image" in kinds["empty"].sentence


def test_ten_defects_at_once_are_all_named(root, capsys):
    """Each on files of its own. The JSON lists every file; the status is 1."""
    for plant in (cut_short, lambda r: Image.new("CMYK", (8, 8)).save(r / "art" / "dog" / "c.jpg")):
        plant(root)
    (root / "art" / "horse" / "gone.png").symlink_to("nowhere.png")
    shutil.copy(root / "art" / "dog" / "0.png", root / "sketch" / "dog" / "leak.png")
    shutil.copy(root / "photo" / "dog" / "0.png", root / "photo" / "horse" / "label.png")
    shutil.copy(root / "cartoon" / "dog" / "0.png", root / "cartoon" / "dog" / "twice.png")
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(root / "photo" / "dog" / "moving.png", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[274] = 3
    write_image(root / "photo" / "horse" / "turned.png", 701, exif=exif)
    (root / "readme.txt").write_text("x")
    (root / "sketch" / "horse" / "2.png").unlink()
    assert cli.main(["data", "check", "PACS", "--data_dir", str(root.parent), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert {finding["kind"] for finding in content["findings"]} == {
        "unreadable", "mode", "dangling", "duplicates-environments", "duplicates-classes", "duplicates-class",
        "animated", "turned", "ignored", "published-images",
    }  # fmt: skip
    assert content["images"]["sketch"] == {"dog": 4, "horse": 2} and content["published"]["sketch"] == 6


def test_a_dataset_that_is_not_there_says_where_it_is_to_be_had(tmp_path, root):
    with pytest.raises(InputError, match=r"`domainfusion data get PACS` or https://example.org/pacs or DomainBed"):
        findings.check("PACS", tmp_path / "elsewhere")


@pytest.mark.parametrize("name, sentence", [("PACSS", "did you mean 'PACS'"), ("Debug28", "is no folder of images")])
def test_names_that_cannot_be_checked(name, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        findings.check(name, tmp_path)


def test_the_page_shows_each_environment_and_class(root, tmp_path, capsys):
    (root / "art" / "dog" / "1.png").write_text("<html>quota exceeded</html>")
    page = tmp_path / "page.html"
    assert cli.main(["data", "check", "PACS", "--data_dir", str(root.parent), "--page", str(page)]) == 1
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 4 * 2 * 3 - 1  # the broken image has no picture
    assert "1 image cannot be read whole; art/dog/1.png." in text


def test_the_samples_depend_on_the_names_alone(root):
    before = choose(read_layout(root), "art", "dog", 2)
    write_image(root / "photo" / "dog" / "new.png", 900)
    assert choose(read_layout(root), "art", "dog", 2) == before
    assert len(choose(read_layout(root), "art", "dog", 99)) == IMAGES


@pytest.fixture
def spawrious(tmp_path, monkeypatch) -> Path:
    """The folder of Spawrious with one image in each split/location/class, beside another dataset's folder."""
    monkeypatch.setattr(host.datasets, "SpawriousO2O_easy", type("SpawriousO2O_easy", (), {}), raising=False)
    monkeypatch.setattr(findings, "SPAWRIOUS", replace(benchmarks.SPAWRIOUS, images=(2,) * 12, classes=2))
    numbers = iter(range(1000))
    for split in "01":
        for location in benchmarks.SPAWRIOUS_LOCATIONS:
            for name in ("bulldog", "corgi"):
                write_image(tmp_path / split / location / name / "a.png", next(numbers))
    write_image(tmp_path / "PACS" / "photo" / "dog" / "a.png", next(numbers))
    return tmp_path


def test_spawrious_is_checked_by_split_and_location(spawrious, capsys):
    arguments = ["data", "check", "SpawriousO2O_easy", "--data_dir", str(spawrious)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "12 environments, 2 classes, 24 images" in printed and "Nothing is wrong with it." in printed
    assert "1/mountain" in printed and "PACS" not in printed.replace(str(spawrious), "")

    shutil.copy(spawrious / "0" / "beach" / "corgi" / "a.png", spawrious / "1" / "snow" / "corgi" / "b.png")
    shutil.rmtree(spawrious / "1" / "dirt" / "bulldog")
    assert cli.main([*arguments, "--json"]) == 1
    found = {each["kind"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert set(found) == {"duplicates-environments", "classes", "published-images"}
    assert found["duplicates-environments"]["files"] == ["0/beach/corgi/a.png", "1/snow/corgi/b.png"]
    assert "1/dirt lacks the classes bulldog" in found["classes"]["sentence"]


def test_spawrious_is_looked_for_in_the_data_folder_itself(spawrious):
    with pytest.raises(InputError, match="has no folder 0 or 1: DomainBed reads Spawrious from --data_dir itself"):
        findings.check("SpawriousO2O_easy", spawrious / "PACS")
    (spawrious / "1").rename(spawrious / "elsewhere")
    check = findings.check("SpawriousO2O_easy", spawrious)
    assert [finding.kind for finding in check.findings] == ["environments"]


def test_what_is_known_of_spawrious():
    """152,064 images in all, as its paper says (Lynch et al. 2023)."""
    assert sum(benchmarks.SPAWRIOUS.images) == 152_064
    assert len(benchmarks.SPAWRIOUS.images) == 2 * len(benchmarks.SPAWRIOUS_LOCATIONS)
