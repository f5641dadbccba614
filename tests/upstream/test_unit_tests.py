"""DomainBed's own unit tests, run in an attached copy with our algorithms in ALGORITHMS, on the CPU."""

import xml.etree.ElementTree as ElementTree

import pytest

from domainbed_domainfusion.hosting import attach, hparams

from .attached import Attached

OURS = ("ERM", *hparams.TABLES)
# Beside test_models.py. Those that need downloaded data (test_datasets.py, two of scripts) skip without DATA_DIR.
TESTS = (
    "test_hparams_registry.py",
    "test_networks.py",
    "test_model_selection.py",
    "lib",
    "scripts",
    "test_datasets.py",
)


def run(copy, folder, tests, datasets, algorithms=()):
    """Run upstream's tests; the names of its tests by outcome: passed, skipped, failed."""
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
    outcomes = {"passed": [], "skipped": [], "failed": []}
    for case in ElementTree.parse(report).iter("testcase"):
        children = {child.tag for child in case}
        outcome = "failed" if children & {"failure", "error"} else "skipped" if "skipped" in children else "passed"
        outcomes[outcome].append(f"{case.get('classname')}.{case.get('name')}")
    counts = ", ".join(f"{len(names)} {outcome}" for outcome, names in outcomes.items())
    print(
        f"\nDomainBed's unit tests, {', '.join(algorithms) or 'all algorithms'} on {', '.join(datasets)} "
        f"({', '.join(tests)}): {counts}"
    )
    if outcomes["failed"]:
        print(done.stdout)
    return outcomes


@pytest.mark.parametrize("dataset", ["Debug28", "Debug224"])
def test_our_algorithms_init_update_and_predict(attached, tmp_path, dataset):
    outcomes = run(attached, tmp_path, ["test_models.py"], [dataset], OURS)
    assert [len(names) for names in outcomes.values()] == [len(OURS), 0, 0]


def test_the_others_do_as_without_us(attached, tmp_path):
    """Every algorithm of DomainBed's on the small images; some fail with today's libraries (Fishr, with torch 2.15)."""
    plain = Attached(tmp_path / "plain")
    attach.detach(plain.path)
    without = run(plain, tmp_path, ["test_models.py"], ["Debug28"])
    with_us = run(attached, tmp_path, ["test_models.py"], ["Debug28"])
    assert with_us["failed"] == without["failed"]
    assert len(with_us["passed"]) == len(without["passed"]) + len(OURS) - 1


def test_the_rest_of_the_suite(attached, tmp_path):
    """Registry (every algorithm and dataset: 36 × 19), featurizers, selection methods, queries, scripts."""
    outcomes = run(attached, tmp_path, TESTS, ["Debug28", "Debug224"])
    assert not outcomes["failed"] and len(outcomes["passed"]) > 36 * 19
