"""The command line: `domainfusion quickstart | sweep | estimate | attach | report`; every verb calls one function."""

import argparse
import sys
from pathlib import Path
from typing import Optional

from . import __doc__ as package_summary
from . import __version__


def main(argv: Optional[list[str]] = None) -> int:
    """Run one verb; return its exit status. Bad input raises InputError, which prints one sentence and exits with 1."""
    # As `python -m` does: a DomainBed checkout in the current folder is a host that can be imported.
    sys.path.insert(0, "")
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="domainfusion", description=package_summary)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    quickstart = verbs.add_parser(
        "quickstart", help="ERM, SAM and DomainFusion over the four environments of DigitStyles, one results table "
                           "and report.html; run again to continue after an interruption")
    quickstart.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="default: %(default)s")
    quickstart.add_argument("--data_dir", type=Path, help="default: data in the output folder")
    quickstart.set_defaults(run=_quickstart)

    # No character is an option's prefix here, so that every argument, --help included, reaches the host's own sweep.
    sweep = verbs.add_parser("sweep", add_help=False, prefix_chars="\0",
                             help="the host's own sweep, with the host's own arguments (launch, delete_incomplete)")
    sweep.add_argument("arguments", nargs="*")
    sweep.set_defaults(run=_sweep)

    estimate = verbs.add_parser("estimate", add_help=False, prefix_chars="\0",
                                help="what a sweep with these arguments would cost (jobs, images, time, memory, disk), "
                                     "from a calibration of a minute or a few on this machine")
    estimate.add_argument("arguments", nargs="*")
    estimate.set_defaults(run=_estimate)

    attach = verbs.add_parser("attach", help="make a DomainBed checkout know our algorithms; undo it with --detach")
    attach.add_argument("path", type=Path, help="root folder of the checkout")
    action = attach.add_mutually_exclusive_group()
    action.add_argument("--check", dest="action", action="store_const", const="check", help="only say whether it is")
    action.add_argument("--detach", dest="action", action="store_const", const="detach", help="leave it as it was")
    attach.set_defaults(run=_attach, action="attach")

    report = verbs.add_parser("report", help="one self-contained HTML page from any sweep folder, with its tables as "
                                             "Markdown and LaTeX beside it")
    report.add_argument("--input_dir", type=Path, required=True, help="a sweep's output folder; it is only read")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="default: %(default)s")
    report.set_defaults(run=_report)
    return parser


def _quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart import quickstart
    return quickstart(arguments.output_dir, arguments.data_dir)


def _sweep(arguments: argparse.Namespace) -> int:
    from .launchers import run_host_script
    return run_host_script("sweep", arguments.arguments)


def _estimate(arguments: argparse.Namespace) -> int:
    from .estimate import estimate
    return estimate(arguments.arguments)


def _attach(arguments: argparse.Namespace) -> Optional[int]:
    from . import attach
    return {"attach": attach.attach, "check": attach.check, "detach": attach.detach}[arguments.action](arguments.path)


def _report(arguments: argparse.Namespace) -> None:
    from .report import write
    for path in write(arguments.input_dir, arguments.output):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
