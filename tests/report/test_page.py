"""The page itself: well-formed, self-contained, accessible; its charts and gallery show what the folder holds."""

import base64
import io
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from domainbed_domainfusion.report import write
from domainbed_domainfusion.report.charts import Series, limits_of, line_chart, ticks
from domainbed_domainfusion.report.page import duration, signed
from domainbed_domainfusion.report.pictures import read_gallery

from .made_up import TARGETS, write_gallery, write_sweep

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def written(sweep_folder, tmp_path_factory):
    return [path.read_text() for path in write(sweep_folder, tmp_path_factory.mktemp("page") / "report.html")]


@pytest.fixture(scope="module")
def outline(written):
    return Outline(written[0])


def test_the_page_is_well_formed_html(written, outline):
    assert written[0].lstrip().startswith("<!DOCTYPE html>")
    ids = outline.attributes("id")
    assert len(ids) == len(set(ids))
    for svg in re.findall(r"<svg.*?</svg>", written[0], flags=re.S):
        ElementTree.fromstring(svg)


def test_the_page_needs_nothing_from_elsewhere_and_no_script(written, outline):
    assert not {tag for tag, _ in outline.tags} & {"script", "link", "iframe", "object", "embed"}
    assert all(source.startswith("data:image/png;base64,") for source in outline.attributes("src"))
    assert all(target.startswith("#") for target in outline.attributes("href"))
    assert not re.search(r"https?://|url\(|@import", written[0])


def test_every_link_leads_somewhere_and_every_picture_has_words(outline):
    assert {target[1:] for target in outline.attributes("href")} <= set(outline.attributes("id"))
    assert all(attributes.get("alt") for tag, attributes in outline.tags if tag == "img")
    assert all(
        attributes.get("aria-label") or attributes.get("aria-hidden")
        for tag, attributes in outline.tags
        if tag == "svg"
    )


def test_the_finding_stands_first(outline):
    text = " ".join(outline.text.split())
    assert "ERM, SAM and DomainFusion on PACS" in text
    assert re.search(
        r"On PACS, DomainFusion reaches 53\.\d % on domains left out of training, averaged over 4 of "
        r"them, before SAM \(4\d\.\d %\) and ERM \(4\d\.\d %\)\.",
        text,
    )
    assert "12 of 12 runs finished, 301 steps each; 1 trial." in text
    assert "Not complete" not in text


def test_the_finding_at_a_tie(tmp_path, monkeypatch):
    """Equal in the digits that are shown: none of the two is before the other."""
    erm = TARGETS["ERM"]
    monkeypatch.setitem(TARGETS, "SAM", (erm[0] + 1e-5, *erm[1:]))
    write_sweep(tmp_path / "runs", algorithms=("ERM", "SAM"))
    page, _, _ = write(tmp_path / "runs", tmp_path / "report.html")
    text = " ".join(Outline(page.read_text()).text.split())
    assert re.search(
        r"On PACS, SAM and ERM reach 4\d\.\d % on domains left out of training, averaged over 4 of them\.", text
    )


def test_markdown_and_latex_hold_the_same_cells_as_the_page(written, outline):
    page, markdown, latex = written
    for row in re.findall(r"^\| (DomainFusion|ERM|SAM) \| (.*) \|$", markdown, flags=re.M)[:3]:
        cells = row[1].split(" | ")
        assert len(cells) == 5
        assert f"{row[0]} & " + " & ".join(cells).replace("±", r"$\pm$") + r" \\" in latex
        assert all(cell.split(" ± ")[0] in outline.text for cell in cells)
    assert "| DomainFusion | ResNet-50 | 90.0 | 53." in markdown


def test_the_gallery_shows_each_file_under_its_round(tmp_path):
    write_gallery(tmp_path, test_env=0, images=2, rounds=2)
    gallery = read_gallery(tmp_path)
    assert gallery.rounds == ((0, 0), (1, 75), (2, 150))
    shown = gallery.lines[1].versions[2]
    with Image.open(tmp_path / "generated" / "round-002" / "env1-00001.png") as original:
        decoded = Image.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1])))
        assert np.array_equal(decoded, original)
    assert (shown.content, shown.style) == (2, 1)  # candidates 1 and (1 + 2) % 3 = 0, counted from 1
    assert gallery.choices.content == (0.5, 0.3, 0.2) and gallery.choices.mixed == 0.62


def test_the_gallery_shows_first_and_last_of_many_rounds_and_images_and_shrinks_them(tmp_path):
    write_gallery(tmp_path, test_env=0, images=10, rounds=12, side=120)
    gallery = read_gallery(tmp_path)
    assert [number for number, _ in gallery.rounds] == [0, 2, 5, 7, 10, 12]
    assert len(gallery.lines) == 6
    assert gallery.lines[0].versions[0].side == 96


def test_a_damaged_gallery_costs_only_what_is_damaged(tmp_path):
    write_gallery(tmp_path, test_env=0, images=2, rounds=1)
    (tmp_path / "generated" / "round-001" / "env1-00000.png").write_bytes(b"no image")
    gallery = read_gallery(tmp_path)
    assert [version.uri is None for line in gallery.lines for version in line.versions] == [False, True, False, False]
    (tmp_path / "generated" / "gallery.json").write_text(json.dumps({"images": []})[:-3])
    assert read_gallery(tmp_path) is None
    shutil.rmtree(tmp_path / "generated")
    assert read_gallery(tmp_path) is None


def test_a_line_breaks_where_a_value_is_not_finite_and_scales_to_its_frame():
    series = Series("a<b", 1, ((0, 0.0), (10, math.nan), (20, 50.0), (30, 100.0)))
    svg = ElementTree.fromstring(line_chart([series], "chart", (0, 100), (0, 30)))
    path = next(element for element in svg if element.get("class") == "line s1")
    assert path.get("d") == "M34.0 164.0M154.0 86.0L214.0 8.0"
    assert path.get("stroke-dasharray") == "7 3"
    assert [element.text for element in svg if element.get("class") == "name s1"] == ["a<b"]


@pytest.mark.parametrize("limits", [(0, 0.005), (0, 1), (-1, 0.005)])
def test_names_at_the_ends_of_lines_never_overlap_nor_leave_the_chart(limits):
    series = [Series(str(number), number, ((0, 0.0), (1, 0.001 * number))) for number in range(5)]
    svg = ElementTree.fromstring(line_chart(series, "chart", limits, (0, 1)))
    names = [element for element in svg if (element.get("class") or "").startswith("name")]
    heights = [float(element.get("y")) for element in names]
    assert [element.text for element in names] == ["4", "3", "2", "1", "0"]  # from the highest value down
    assert all(later - earlier >= 14 - 1e-6 for earlier, later in itertools.pairwise(heights))
    assert min(heights) > 0 and max(heights) < 170


def test_charts_side_by_side_share_limits_that_hold_every_finite_point():
    charts = [[Series("a", 0, ((0, 2.0), (5, 8.0)))], [Series("b", 0, ((0, math.inf), (9, 5.0)))]]
    (low, high), steps = limits_of(charts)
    assert (low, steps) == (0.0, (0, 9)) and 8.0 < high < 9.0
    assert limits_of([[Series("a", 0, ((0, math.nan),))]]) is None


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 100, [0, 50, 100]), (0, 2.3, [0, 1, 2]), (0, 300, [0, 100, 200, 300]), (-0.5, 0.3, [-0.4, -0.2, 0, 0.2])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_durations_have_a_readable_unit():
    texts = [duration(seconds) for seconds in (0, 0.0123, 1.5, 90, 7200, 189216)]
    assert texts == ["–", "12.3 ms", "1.5 s", "1.5 min", "2 h", "2.19 days"]
    assert [signed(number) for number in (1.25, -1.25, None)] == ["+1.2", "−1.2", "–"]
