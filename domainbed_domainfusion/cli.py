"""The command line: `domainfusion quickstart | sweep | attach | report | figures`; every verb calls one function."""

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

    figures = verbs.add_parser("figures", help="the supplement's figures of one DomainFusion run: generated versions, their "
                                               "LD noise images, contrast reduction against random masking")
    figures.add_argument("--run", type=Path, required=True, dest="folder", metavar="JOB", help="a job's folder")
    figures.add_argument("--output", type=Path, help="default: generated/figures in the job's folder, where report looks")
    figures.add_argument("--draws", type=int, default=32, help="of (t, noise) per LD noise image (default: %(default)s); "
                                                               "time grows with it")
    figures.add_argument("--ldm", help="hub id or folder in place of the run's own, where that has moved")
    figures.set_defaults(run=_figures)
    return parser


def _quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart import quickstart
    return quickstart(arguments.output_dir, arguments.data_dir)


def _sweep(arguments: argparse.Namespace) -> int:
    from .launchers import run_host_script
    return run_host_script("sweep", arguments.arguments)


def _attach(arguments: argparse.Namespace) -> Optional[int]:
    from . import attach
    return {"attach": attach.attach, "check": attach.check, "detach": attach.detach}[arguments.action](arguments.path)


def _report(arguments: argparse.Namespace) -> None:
    from .report import write
    for path in write(arguments.input_dir, arguments.output):
        print(path)


def _figures(arguments: argparse.Namespace) -> None:
    from .report.figures import write_figures
    for path in write_figures(arguments.folder, arguments.output, arguments.draws, arguments.ldm):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
