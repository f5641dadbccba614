"""Run DomainBed's own unit tests with our algorithms among its ALGORITHMS: `python -m tests.upstream.unit_tests`.

They call `.cuda()` on everything. Without a GPU that call is replaced by one that does nothing. The report says of each
test that is of one algorithm which one that is. `--names` prints the names of ours instead.
"""

import argparse
import re
import sys

import pytest
import torch
from domainbed import algorithms
from domainbed.test import helpers

from domainbed_domainfusion.hosting import host


class NamedAlgorithms:
    """A plugin of pytest. It writes each test's algorithm to the report, as the property `algorithm`."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:  # parameterized appends the arguments to the first line of a test's docstring
            found = re.search(r"algorithm_name='(\w+)'", getattr(item, "function", item).__doc__ or "")
            if found:
                item.user_properties.append(("algorithm", found[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description="DomainBed's unit tests, for some algorithms and debug datasets")
    parser.add_argument("--datasets", nargs="+", default=list(helpers.DEBUG_DATASETS))
    parser.add_argument("--algorithms", nargs="+", default=list(algorithms.ALGORITHMS))
    parser.add_argument("--report", help="file for pytest's XML report")
    parser.add_argument("--names", action="store_true")
    parser.add_argument("tests", nargs="*")
    args = parser.parse_args()
    if args.names:
        print(*host.our_algorithms())
        return 0
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
    helpers.DEBUG_DATASETS[:] = args.datasets
    algorithms.ALGORITHMS[:] = args.algorithms
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", *([f"--junitxml={args.report}"] if args.report else [])]
    return pytest.main([*options, *args.tests], plugins=[NamedAlgorithms()])


if __name__ == "__main__":
    sys.exit(main())
