"""Resuming inside the real DomainBed: every algorithm's state, and a killed job."""

import re


def test_every_algorithm_goes_on_exactly(attached):
    """Captured after three steps, restored into a new one, and compared after six."""
    printed = attached.python("tests.resuming.in_process").stdout
    lines = [line for line in printed.splitlines() if re.match(r"\w+: (equal|NOT EQUAL|does not run)", line)]
    print("\n".join(lines))
    outcomes = dict(line.split(": ", 1) for line in lines)
    assert sum(outcome == "equal" for outcome in outcomes.values()) >= 36
    not_here = {name for name, outcome in outcomes.items() if outcome.startswith("does not run here")}
    assert not_here <= {"Fishr"}  # BackPACK does not know this torch


def test_jobs_that_are_killed_twice_end_as_the_uninterrupted_ones(domainbed_dir, attached):
    algorithms = ["Fish", "DomainFusion", "IRM"]
    printed = attached.python("tests.resuming.kill_driver", "--runs", 3, "--algorithms", *algorithms).stdout
    assert printed.splitlines()[-1] == "3 of 3 runs equal", printed
