"""Run DomainBed's own unit tests with our algorithms among its ALGORITHMS: `python -m tests.upstream.unit_tests`.

They call `.cuda()` on everything. Without a GPU that call is replaced by one that does nothing.
"""

import argparse
import sys

import pytest
import torch
from domainbed import algorithms
from domainbed.test import helpers


def main() -> int:
    parser = argparse.ArgumentParser(description="DomainBed's unit tests, for some algorithms and debug datasets")
    parser.add_argument("--datasets", nargs="+", default=list(helpers.DEBUG_DATASETS))
    parser.add_argument("--algorithms", nargs="+", default=list(algorithms.ALGORITHMS))
    parser.add_argument("--report", required=True, help="file for pytest's XML report")
    parser.add_argument("tests", nargs="+")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
    helpers.DEBUG_DATASETS[:] = args.datasets
    algorithms.ALGORITHMS[:] = args.algorithms
    return pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={args.report}", *args.tests])


if __name__ == "__main__":
    sys.exit(main())
