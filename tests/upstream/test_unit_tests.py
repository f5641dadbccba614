"""DomainBed's own unit tests, run in an attached copy with our algorithms in ALGORITHMS, on the CPU."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from typing import NamedTuple

import pytest

from domainbed_domainfusion.hosting import attach, host

from .attached import Attached

#: The plugin's names, from the registry of the embedded host: an algorithm that is registered has its tests run.
OURS = host.our_algorithms()
OF_AN_ALGORITHM = ("test_models.py", "test_hparams_registry.py")
# Beside test_models.py. Those that need downloaded data (test_datasets.py, two of scripts) skip without DATA_DIR.
TESTS = (
    "test_hparams_registry.py",
    "test_networks.py",
    "test_model_selection.py",
    "lib",
    "scripts",
    "test_datasets.py",
)
DATASETS = ("Debug28", "Debug224")


class Case(NamedTuple):
    """One of upstream's tests."""

    name: str
    file: str  # e.g. test_models
    outcome: str  # passed, skipped or failed
    algorithm: str | None  # where it is of one
    seconds: float


def run(copy, folder, tests, datasets=DATASETS, algorithms=()) -> list[Case]:
    """Run upstream's tests in the copy. Without `algorithms`: for all that it has."""
    report = folder / "report.xml"
    chosen = ("--algorithms", *algorithms) if algorithms else ()
    done = copy.python(
        "tests.upstream.unit_tests",
        *(f"domainbed/test/{test}" for test in tests),
        "--report",
        report,
        "--datasets",
        *datasets,
        *chosen,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    cases = [case_of(element) for element in ElementTree.parse(report).iter("testcase")]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(case.outcome for case in cases).items())
    print(
        f"\nDomainBed's unit tests, {', '.join(algorithms) or 'all algorithms'} on {', '.join(datasets)} "
        f"({', '.join(tests)}): {counts}"
    )
    if names(cases, "failed"):
        print(done.stdout)
    return cases


def case_of(element: ElementTree.Element) -> Case:
    """The case of a <testcase> in pytest's report."""
    children = {child.tag for child in element}
    outcome = "failed" if children & {"failure", "error"} else "skipped" if "skipped" in children else "passed"
    named = element.find("properties/property[@name='algorithm']")
    module = next(part for part in element.get("classname").split(".") if part.startswith("test_"))
    algorithm = None if named is None else named.get("value")
    return Case(
        f"{element.get('classname')}.{element.get('name')}", module, outcome, algorithm, float(element.get("time"))
    )


def names(cases: list[Case], outcome: str) -> list[str]:
    return [case.name for case in cases if case.outcome == outcome]


@pytest.fixture(scope="module")
def cases_of_ours(request, attached, tmp_path_factory):
    """The tests of those of our algorithms that this session has chosen (`-k DSI`), in one process of the copy.

    At the end a line for each says how many of them there were.
    """
    chosen = [item.callspec.params["name"] for item in request.session.items if "cases_of_ours" in item.fixturenames]
    cases = run(attached, tmp_path_factory.mktemp("ours"), OF_AN_ALGORITHM, algorithms=chosen)
    yield cases
    print("\n\nDomainBed's own tests, run for each name of ours:")
    for name in chosen:
        own = [case for case in cases if case.algorithm == name]
        files = ", ".join(f"{count} of {file}" for file, count in Counter(case.file for case in own).items())
        passed, seconds = sum(case.outcome == "passed" for case in own), sum(case.seconds for case in own)
        print(f"  {name}: {len(own)} tests ({files}), {passed} passed, {seconds:.1f} s")


@pytest.mark.parametrize("name", OURS)
def test_our_algorithm(cases_of_ours, name):
    """It inits, updates and predicts on both debug datasets, and its hparams are the same at each draw of a seed."""
    own = [case for case in cases_of_ours if case.algorithm == name]
    assert {case.outcome for case in own} == {"passed"}, own
    counts = Counter(case.file for case in own)
    assert counts["test_models"] == len(DATASETS) and counts["test_hparams_registry"] >= 19  # datasets


def test_the_copy_has_our_names(attached):
    """Those that are registered in the embedded host are registered in DomainBed."""
    assert attached.python("tests.upstream.unit_tests", "--names").stdout.split() == OURS


def test_the_others_do_as_without_us(attached, tmp_path):
    """Every algorithm of DomainBed's on the small images; some fail with today's libraries (Fishr, with torch 2.15)."""
    plain = Attached(tmp_path / "plain")
    attach.detach(plain.path)
    without = run(plain, tmp_path, ["test_models.py"], ["Debug28"])
    with_us = run(attached, tmp_path, ["test_models.py"], ["Debug28"])
    assert names(with_us, "failed") == names(without, "failed")
    assert len(names(with_us, "passed")) == len(names(without, "passed")) + len(OURS)


def test_the_rest_of_the_suite(attached, tmp_path):
    """Registry (every algorithm and dataset: 36 × 19), featurizers, selection methods, queries, scripts."""
    cases = run(attached, tmp_path, TESTS)
    assert not names(cases, "failed") and len(names(cases, "passed")) > 36 * 19
