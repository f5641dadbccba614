"""The verbs of `domainfusion data`: get, check, add, sheet."""

import argparse
from pathlib import Path

from .our_names import add_our_names_to_the_host


def add_to(verbs: argparse._SubParsersAction) -> None:
    """Add `data` with its own verbs to the verbs of `domainfusion`."""
    data = verbs.add_parser(
        "data", help="get a benchmark, check or show a dataset, add images of your own to the host's datasets"
    )
    data_verbs = data.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = data_verbs.add_parser(
        "check", help="what is wrong with a dataset, before a run meets it; status 1 if there is an error"
    )
    check.add_argument("name", help="PACS, VLCS, OfficeHome, TerraIncognita, DomainNet, SVIRO, or a dataset of yours")
    check.add_argument("--data_dir", type=Path, required=True, help="the --data_dir of your sweeps")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the text")
    check.add_argument("--page", type=Path, help="also write an HTML page with images of each environment and class")
    check.set_defaults(run=_check)
    get = data_verbs.add_parser(
        "get",
        help="download a benchmark; its folder appears when all of it is there and checked; run again to continue",
    )
    get.add_argument("name", help="PACS, VLCS, OfficeHome, TerraIncognita or DomainNet")
    get.add_argument("--data_dir", type=Path, required=True, help="the --data_dir of your sweeps")
    get.add_argument("--source", default="", help="address or file of a zip or tar archive; default: the known sources")
    get.add_argument("--sha256", default="", help="--source: its checksum")
    get.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a byte; default: %(default)s")
    get.set_defaults(run=_get)
    add = data_verbs.add_parser(
        "add", help="write data_dir/NAME/dataset.json; from then on --datasets NAME works with this --data_dir"
    )
    add.add_argument("name", help="the dataset's name in the host")
    add.add_argument("folder", type=Path, help="environment/class/image, or with --manifest any; it is only read")
    add.add_argument("--manifest", type=Path, help="a CSV or JSON file: path in FOLDER, class and domain of each image")
    add.add_argument("--data_dir", type=Path, required=True, help="the --data_dir of your sweeps")
    add.add_argument("--environments", nargs="+", help="short names, in sorted order of the folders; default: theirs")
    add.add_argument("--class_names", nargs="+", help="for prompts, in sorted order of the folders; default: theirs")
    add.add_argument("--image_size", type=int, help="pixels a side of the classifier's input; default: 224")
    add.add_argument("--steps", type=int, help="of a run; default: the host's 5001")
    add.add_argument("--checkpoint_freq", type=int, help="steps from one evaluation to the next; default: 300")
    add.add_argument("--workers", type=int, help="worker processes per data loader; default: the host's 8")
    add.set_defaults(run=_add)
    sheet = data_verbs.add_parser(
        "sheet", help="a picture of a dataset: images of each environment and class, and what a run generated of them"
    )
    sheet.add_argument("name", help="a dataset that `data check` knows")
    sheet.add_argument("--data_dir", type=Path, required=True, help="the --data_dir of your sweeps")
    sheet.add_argument("--output", type=Path, required=True, help="a .png file")
    sheet.add_argument("--images", type=int, default=2, help="of each environment and class; default: %(default)s")
    sheet.add_argument("--classes", nargs="+", help="class folders; default: at most 8, evenly spread")
    sheet.add_argument("--run", dest="job", type=Path, help="job folder of a DomainFusion run that saved its images")
    sheet.set_defaults(run=_sheet)


def _check(arguments: argparse.Namespace) -> int:
    add_our_names_to_the_host()
    from ..data.findings import check

    found = check(arguments.name, arguments.data_dir)
    if arguments.page:
        from ..report.data_page import write_data_page

        write_data_page(found, arguments.page)
    print(found.json() if arguments.json else found.text())
    return 1 if found.has_errors else 0


def _sheet(arguments: argparse.Namespace) -> None:
    add_our_names_to_the_host()
    from ..report.data_sheet import write_data_sheet

    print(
        write_data_sheet(
            arguments.name,
            arguments.data_dir,
            arguments.output,
            images=arguments.images,
            classes=arguments.classes,
            job_folder=arguments.job,
        )
    )


def _get(arguments: argparse.Namespace) -> None:
    add_our_names_to_the_host()
    from ..data.getting import get
    from ..data.transfer import Patience

    patience = Patience(timeout=arguments.timeout)
    print(get(arguments.name, arguments.data_dir, arguments.source, arguments.sha256, patience).text())


def _add(arguments: argparse.Namespace) -> None:
    add_our_names_to_the_host()
    from ..data.adding import add_folder, add_manifest

    names = ("environments", "class_names", "image_size", "steps", "checkpoint_freq", "workers")
    given = {name: getattr(arguments, name) for name in names}
    name, folder, data_dir = arguments.name, arguments.folder, arguments.data_dir
    if arguments.manifest:
        written, found = add_manifest(name, folder, arguments.manifest, data_dir, **given)
    else:
        written, found = add_folder(name, folder, data_dir, **given)
    print(written, found.text(), sep="\n")
