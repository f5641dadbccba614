"""Accuracy against the diffusion model's work: the numbers behind it, where its marks stand, and its names apart."""

import json
import math
from xml.etree import ElementTree

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.diffusion.evaluations import FILE
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.report import write
from domainbed_domainfusion.report.compare import compare, markdown, plot
from domainbed_domainfusion.report.jobs import read_sweep
from domainbed_domainfusion.report.kept import write_kept
from domainbed_domainfusion.report.work_chart import SECONDS, Mark, work_chart

from .made_up import write_sweep


def drawn(svg):
    """(circles as (x, y), names as (text, left, y), a letter being 6 pixels wide) of an SVG."""
    tree = ElementTree.fromstring(str(svg))
    parts = [(each.tag.rpartition("}")[2], each) for each in tree.iter()]
    circles = [(float(each.get("cx")), float(each.get("cy"))) for tag, each in parts if tag == "circle"]
    texts = [each for tag, each in parts if tag == "text" and "name" in each.get("class")]
    widths = [6 * len(each.text) if each.get("text-anchor") == "end" else 0 for each in texts]
    return circles, [(t.text, float(t.get("x")) - width, float(t.get("y"))) for t, width in zip(texts, widths)]


@pytest.fixture
def sweeps(tmp_path):
    """Two sweeps. A job of DomainFusion has 1,000 evaluations, and one more for each job before it."""
    write_sweep(tmp_path / "rivals", trials=2, algorithms=("ERM", "SAM"))
    jobs = write_sweep(tmp_path / "full", trials=2, algorithms=("DomainFusion",))
    for number, job in enumerate(jobs):
        (job / FILE).write_text(json.dumps({"unet_evaluations": 1000 + number}))
        rows = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**row, "hparams": {**row["hparams"], "ldm": "pocket"}}) + "\n" for row in rows)
        (job / "results.jsonl").write_text(text)
    return [tmp_path / "full", tmp_path / "rivals"]


def test_an_arms_work_is_the_mean_over_its_jobs_also_in_kept_results(sweeps, tmp_path):
    write_kept(read_sweep(sweeps[0]), tmp_path / "kept.jsonl")
    for paths in (sweeps, [tmp_path / "kept.jsonl", sweeps[1]]):
        found = compare(paths)
        assert [arm.evaluations for arm in found.arms] == [1000 + 3.5, 0, 0]
        lines = markdown(found, evaluations=True).splitlines()
        assert lines[2].endswith("| to the first | U-Net evaluations |") and lines[3].count("|") == lines[4].count("|")
        assert lines[4].endswith("| 1,004 |") and lines[5].endswith("| 0 |")
        assert "U-Net" not in markdown(found)


def test_an_arms_seconds_are_those_of_all_its_steps_also_in_kept_results(sweeps, tmp_path):
    """Rows hold means over the steps since the row before."""
    write_kept(read_sweep(sweeps[0]), tmp_path / "kept.jsonl")
    expected = []
    for results in sweeps[0].glob("*/results.jsonl"):
        before, total = -1, 0.0
        for row in map(json.loads, results.read_text().splitlines()):
            total += (row["generation_seconds"] + row["ld_seconds"]) * (row["step"] - before)
            before = row["step"]
        expected.append(total)
    mean = sum(expected) / len(expected)
    assert mean > 1
    for paths in (sweeps, [tmp_path / "kept.jsonl", sweeps[1]]):
        found = compare(paths)
        assert found.arms[0].seconds == pytest.approx(mean) and [arm.seconds for arm in found.arms[1:]] == [0, 0]
        lines = markdown(found, evaluations=True, seconds=True).splitlines()
        assert lines[2].endswith("| U-Net evaluations | LDM seconds |")
        assert lines[4].endswith(f"| 1,004 | {mean:,.0f} |") and lines[5].endswith("| 0 | 0 |")


def test_work_that_was_not_recorded_is_a_dash_and_no_mark(sweeps):
    next(sweeps[0].iterdir()).joinpath(FILE).unlink()
    found = compare(sweeps)
    assert found.arms[0].evaluations is None
    assert markdown(found, evaluations=True).splitlines()[4].endswith("| – |")
    with pytest.raises(InputError, match="The arm full has not a record of the U-Net's evaluations"):
        plot(found)
    for results in sweeps[0].glob("*/results.jsonl"):
        results.write_text(results.read_text().replace('"generation_seconds"', '"other"'))
    with pytest.raises(InputError, match="The arm full has not a record of the seconds of generation"):
        plot(compare(sweeps), SECONDS)


def test_jobs_without_a_row_change_nothing(sweeps):
    """One has written nothing yet; the other, of the same algorithm, what it was started with."""
    begun = next(job for job in sweeps[0].iterdir())
    for name in ("0" * 32, "f" * 32):
        (sweeps[0] / name).mkdir()
    (sweeps[0] / ("0" * 32) / "out.txt").write_text((begun / "out.txt").read_text())
    assert len(read_sweep(sweeps[0]).unfinished) == 2
    assert [arm.evaluations for arm in compare(sweeps).arms] == [1000 + 3.5, 0, 0]


def test_marks_stand_at_the_logarithm_of_their_work_and_at_their_accuracy():
    numbers = [(0, 40.0), (100, 50.0), (1_000, 60.0), (10_000, 45.0)]
    circles, _ = drawn(work_chart([Mark("m", i, work, mean, 1.0) for i, (work, mean) in enumerate(numbers)], "title"))
    xs, ys = zip(*circles)
    assert xs[0] < xs[1] and xs[2] - xs[1] == pytest.approx(xs[3] - xs[2], abs=0.2)
    for i in range(1, 4):
        assert (ys[0] - ys[i]) / (ys[0] - ys[2]) == pytest.approx((numbers[i][1] - 40) / 20, abs=0.01)


def test_seconds_begin_at_zero_and_are_not_logarithmic():
    marks = [Mark("m", i, work, 50.0 + i, 0.0) for i, work in enumerate([0, 100, 200, 400])]
    circles, _ = drawn(chart := work_chart(marks, "title", SECONDS))
    xs = [x for x, _ in circles]
    assert xs[3] - xs[2] == pytest.approx(2 * (xs[2] - xs[1]), abs=0.3)
    assert xs[0] < xs[1] - (xs[2] - xs[1])  # without work: left of where zero seconds would be
    assert "seconds of generation and Latent Distillation" in chart and ">400</text>" in chart


def test_no_name_covers_another():
    marks = [Mark(f"Algorithm{i}", i, 10 ** (i % 4) if i % 3 else 0, 60 + (i % 5) / 10, 0.3) for i in range(24)]
    _, names = drawn(work_chart(marks, "title"))
    assert [name for name, _, _ in names] == [mark.name for mark in marks]
    for i, (one, x, y) in enumerate(names):
        for other, other_x, other_y in names[:i]:
            apart = abs(y - other_y) > 13 or x + 6 * len(one) < other_x or other_x + 6 * len(other) < x
            assert apart, f"{one} and {other}"


def test_a_long_name_without_work_ends_before_the_works_axis():
    marks = [Mark("family-classifiers: Hutchinson", 0, 0, 50.0, 0.0), Mark("CDGA", 1, 100, 49.9, 0.0)]
    (_, (x, _)), ((name, left, _), _) = drawn(work_chart(marks, "title"))
    assert left + 6.5 * len(name) < x


def test_a_name_goes_to_the_left_where_another_mark_is_in_its_way():
    marks = [Mark("family-invariant", 0, 96_000, 61.9, 0.0), Mark("tta", 1, 144_000, 61.8, 0.0)]
    marks += [Mark("far", 2, 19_200, 50.0, 0.0)]
    ((x, _), (beside, _), _), ((name, left, _), (_, other, _), (_, far, _)) = drawn(work_chart(marks, "title"))
    assert left + 6 * len(name) < x < beside < other
    crowded = [*marks, Mark("on the left", 3, 60_000, 61.9, 0.0)]
    (_, _, _, (before, _)), ((_, left, _), *_) = drawn(work_chart(crowded, "title"))
    assert before < x < left  # no side is free: as ever


def test_one_mark_and_no_diffusion_model_can_be_drawn():
    for work in (0, 1, 12345):
        circles, _ = drawn(work_chart([Mark("ERM", 0, work, 50.0, 0.0)], "title"))
        assert len(circles) == 1 and all(map(math.isfinite, circles[0]))


def test_the_verb_prints_the_column_and_writes_the_plot(sweeps, tmp_path, capsys):
    plotted = tmp_path / "work.svg"
    assert cli.main(["compare", *map(str, sweeps), "--evaluations", "--plot", str(plotted)]) == 0
    assert "| 1,004 |" in capsys.readouterr().out
    assert [name for name, _, _ in drawn(plotted.read_text())[1]] == ["full", "rivals: ERM", "rivals: SAM"]
    assert cli.main(["compare", *map(str, sweeps), "--seconds", "--plot", str(plotted)]) == 0
    assert "| LDM seconds |" in capsys.readouterr().out and "seconds of generation" in plotted.read_text()
    for option in ("--evaluations", "--seconds"):
        with pytest.raises(InputError, match="takes no --evaluations, --seconds, --plot or --trials"):
            cli.run(["compare", "--left_out", option, str(sweeps[0])])


def test_the_report_has_the_plot_if_a_diffusion_model_worked(sweeps, tmp_path):
    page, _, _ = write(sweeps[0], tmp_path / "full.html")
    assert "evaluations of the diffusion model’s U-Net" in page.read_text() and ">1,004</td>" in page.read_text()
    page, _, _ = write(sweeps[1], tmp_path / "rivals.html")
    assert "evaluations of the diffusion model’s U-Net" not in page.read_text()
