"""The command line: `domainfusion quickstart | sweep | estimate | attach | report | …`. Each verb calls a function.

The verbs of `domainfusion data` stand in `data_verbs`, `search-timesteps` in `timesteps_verb`. May import: every room
below, each when its verb is called.
"""

import argparse
import sys
from pathlib import Path

from .. import __doc__ as package_summary
from .. import __version__
from ..errors import InputError, exit_status
from . import data_verbs, timesteps_verb
from .our_names import add_our_names_to_the_host

ESTIMATE_HELP = """\
usage: domainfusion estimate [--json] [launch] ARGUMENTS
       domainfusion estimate [--json] [launch] FILE ARGUMENTS

What a sweep costs before it runs: jobs, generated images, time, memory and disk. The rates come from a calibration on
this machine, which takes a minute or a few. Nothing is trained, kept or downloaded.

FILE is a sweep file (see `domainfusion sweep --help`). ARGUMENTS are those of the sweep itself, so that
`domainfusion sweep launch …` becomes `domainfusion estimate …`:

  --data_dir D --output_dir O --command_launcher L      required; jobs that the folder O has already cost nothing
  --datasets … --algorithms … --task T                  default: all, all, domain_generalization
  --n_hparams_from N --n_hparams N --n_trials N         default: 0, 20, 3
  --steps N --seed N --holdout_fraction F --hparams JSON
  --single_test_envs                                    one test environment at a time, not also every two
  --skip_confirmation                                   accepted, without effect

  --json      one JSON object on stdout instead of the tables
  -h, --help  this text"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit status. Bad input prints one sentence on stderr and gives status 1."""
    return exit_status(lambda: run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit status. Raises InputError for bad input."""
    # As `python -m` does: a DomainBed checkout in the current folder is a host that can be imported.
    sys.path.insert(0, "")
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="domainfusion", description=package_summary)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (
        _add_quickstart,
        _add_sweep,
        _add_estimate,
        _add_attach,
        _add_report,
        _add_compare,
        _add_keep,
        _add_figures,
        _add_ld_curve,
        data_verbs.add_to,
        _add_predict,
        _add_generate,
        timesteps_verb.add_to,
    ):
        add(verbs)
    return parser


def _add_quickstart(verbs: argparse._SubParsersAction) -> None:
    quickstart = verbs.add_parser(
        "quickstart",
        help="ERM, SAM and DomainFusion over the four environments of DigitStyles, one results table "
        "and report.html; run again to continue after an interruption",
    )
    quickstart.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="default: %(default)s")
    quickstart.add_argument("--data_dir", type=Path, help="default: data in the output folder")
    quickstart.add_argument("--n_trials", type=int, default=1, help="as in the host's sweep; default: %(default)s")
    quickstart.set_defaults(run=_quickstart)


def _add_sweep(verbs: argparse._SubParsersAction) -> None:
    # With no prefix character there are no options here: every argument, --help included, reaches the host's own sweep.
    sweep = verbs.add_parser(
        "sweep",
        add_help=False,
        prefix_chars="\0",
        help="the host's own sweep (launch, delete_incomplete), with its own arguments or with those of "
        "a sweep file: launch FILE, --dry-run FILE, --check FILE",
    )
    sweep.add_argument("arguments", nargs="*")
    sweep.set_defaults(run=_sweep)


def _add_estimate(verbs: argparse._SubParsersAction) -> None:
    estimate = verbs.add_parser(
        "estimate",
        add_help=False,
        prefix_chars="\0",
        help="what a sweep with these arguments would cost (jobs, images, time, memory, disk), "
        "from a calibration of a minute or a few on this machine",
    )
    estimate.add_argument("arguments", nargs="*")
    estimate.set_defaults(run=_estimate)


def _add_attach(verbs: argparse._SubParsersAction) -> None:
    attach = verbs.add_parser("attach", help="make a DomainBed checkout know our algorithms; undo it with --detach")
    attach.add_argument("path", type=Path, help="root folder of the checkout")
    action = attach.add_mutually_exclusive_group()
    action.add_argument("--check", dest="action", action="store_const", const="check", help="only say whether it is")
    action.add_argument("--detach", dest="action", action="store_const", const="detach", help="leave it as it was")
    attach.set_defaults(run=_attach, action="attach")


def _add_report(verbs: argparse._SubParsersAction) -> None:
    report = verbs.add_parser(
        "report",
        help="one self-contained HTML page from any sweep folder, with its tables as Markdown and LaTeX beside it",
    )
    report.add_argument("--input_dir", type=Path, required=True, help="a sweep's output folder; it is only read")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="default: %(default)s")
    report.set_defaults(run=_report)


def _add_compare(verbs: argparse._SubParsersAction) -> None:
    compare = verbs.add_parser("compare", help="one table of several sweeps on a dataset, a row for each arm")
    compare.add_argument("sweeps", type=Path, nargs="+", help="sweep folders, or files of kept results")
    compare.add_argument(
        "--left_out",
        action="store_true",
        help="judge each arm on left-out training domains, and name the best one for each test domain",
    )
    compare.add_argument(
        "--only", metavar="NAME,NAME", default="", help="these test environments alone, for example H,A"
    )
    compare.add_argument("--trials", type=int, nargs="+", default=[], help="these trials alone, for example 0")
    compare.add_argument(
        "--evaluations", action="store_true", help="one more column: how often a job evaluated the diffusion model"
    )
    compare.add_argument(
        "--seconds",
        action="store_true",
        help="one more column: the seconds of generation and Latent Distillation in a job's steps",
    )
    compare.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg",
        help="also draw the averages against these seconds with --seconds, else against the evaluations",
    )
    compare.set_defaults(run=_compare)


def _add_keep(verbs: argparse._SubParsersAction) -> None:
    keep = verbs.add_parser(
        "keep", help="a finished sweep's results as one text file, which report and compare read like the folder"
    )
    keep.add_argument("--input_dir", type=Path, required=True, help="a sweep's output folder; it is only read")
    keep.add_argument("--output", type=Path, required=True, help="the file to write, such as results/full.jsonl")
    keep.set_defaults(run=_keep)


def _add_figures(verbs: argparse._SubParsersAction) -> None:
    figures = verbs.add_parser(
        "figures",
        help="the supplement's figures of one DomainFusion run: generated "
        "versions, LD noise images, contrast reduction against masking",
    )
    figures.add_argument("--run", type=Path, required=True, dest="job", metavar="JOB", help="a job's folder")
    figures.add_argument("--output", type=Path, help="default: generated/figures in the job, where report looks")
    figures.add_argument(
        "--draws",
        type=int,
        default=32,
        help="draws of (t, noise) per LD noise image; time grows with them (default: %(default)s)",
    )
    figures.add_argument("--ldm", help="hub id or folder in place of the run's own, where that has moved")
    figures.add_argument("--data_dir", help="the run's data folder now, for datasets that keep their transform there")
    figures.set_defaults(run=_figures)


def _add_ld_curve(verbs: argparse._SubParsersAction) -> None:
    curve = verbs.add_parser(
        "ld-curve",
        help="whether Latent Distillation will raise or lower the confidence of your images, before any training: its "
        "coefficient a over the confidence p, by domain and class, under matched and mismatched prompts",
    )
    curve.add_argument("--data", type=Path, required=True, help="a folder domain/class/image")
    curve.add_argument("--ldm", help="the hparam ldm")
    curve.add_argument("--hparams", help='a JSON object of DomainFusion\'s hparams, such as {"ld_preset": "score"}')
    curve.add_argument("--output", type=Path, default=Path("ld-curve.png"), help="default: %(default)s")
    curve.add_argument("--images", type=int, default=64, help="per domain; default: %(default)s")
    curve.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    curve.set_defaults(run=_ld_curve)


def _add_predict(verbs: argparse._SubParsersAction) -> None:
    predict = verbs.add_parser(
        "predict", help="class probabilities of images, from a finished run's model.pkl of any algorithm of the host"
    )
    predict.add_argument("model", type=Path, help="a model.pkl, or the job folder it lies in")
    predict.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    predict.add_argument("--output", type=Path, help="a CSV file with the probability of every class")
    predict.add_argument("--class_names", nargs="+", help="in label order; default: the run's own")
    predict.add_argument("--data_dir", help="the run's data folder now, for its class names; default: where it was")
    predict.add_argument("--top", type=int, default=3, help="classes shown for each image; default: %(default)s")
    predict.set_defaults(run=_predict)


def _add_generate(verbs: argparse._SubParsersAction) -> None:
    generate = verbs.add_parser(
        "generate",
        help="generated images with their provenance, as an image folder: of "
        "a run, or of your own images without training",
    )
    what = generate.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", dest="job", type=Path, help="a job folder trained with the hparam save_generated")
    what.add_argument("--data", type=Path, help="a folder environment/class/image; run again to continue")
    generate.add_argument(
        "--output", type=Path, required=True, help="folder of environment/class/image.png and provenance.csv"
    )
    generate.add_argument(
        "--rounds",
        type=int,
        help="--run: the round to write (default: the last saved); --data: "
        "rounds to run, each from the results before (default: 1)",
    )
    generate.add_argument("--ldm", help="--data: the hparam ldm")
    generate.add_argument(
        "--classifier",
        type=Path,
        help="--data: a model.pkl that judges content; without one "
        "content is chosen by its likeness to the original alone",
    )
    generate.add_argument("--hparams", help="--data: a JSON object of DomainFusion's hparams")
    generate.add_argument("--seed", type=int, help="--data: default 0")
    generate.set_defaults(run=_generate)


def _quickstart(arguments: argparse.Namespace) -> int:
    from ..sweeping.quickstart import quickstart

    return quickstart(arguments.output_dir, arguments.data_dir, arguments.n_trials)


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.arguments[:1] == ["status"]:  # it is asked often, and needs neither the host nor torch
        from ..sweeping import status

        return status.command(arguments.arguments[1:])
    from ..sweeping.command import sweep

    return sweep(arguments.arguments)


def _estimate(arguments: argparse.Namespace) -> int:
    if {"-h", "--help"} & set(arguments.arguments):
        print(ESTIMATE_HELP)
        return 0
    from ..estimate import estimate

    return estimate(arguments.arguments)


def _attach(arguments: argparse.Namespace) -> int | None:
    from ..hosting import attach

    return {"attach": attach.attach, "check": attach.check, "detach": attach.detach}[arguments.action](arguments.path)


def _know_described_datasets(sweeps: list[Path]) -> None:
    """Add the datasets of `data add` that these sweeps were given, if their data folders are on this machine."""
    from ..data.own_datasets import register_described

    for sweep in sweeps:
        register_described(["--input_dir", str(sweep)])


def _report(arguments: argparse.Namespace) -> None:
    from ..report import write

    add_our_names_to_the_host()
    for path in write(arguments.input_dir, arguments.output):
        print(path)


def _compare(arguments: argparse.Namespace) -> None:
    from ..files import write_atomically
    from ..report.compare import best_arms, compare, compare_left_out, markdown, plot
    from ..report.work_chart import EVALUATIONS, SECONDS

    add_our_names_to_the_host()
    _know_described_datasets(arguments.sweeps)
    if arguments.left_out and arguments.only:
        raise InputError("`domainfusion compare` takes --left_out or --only, not both: leave one of them out.")
    if arguments.left_out and (arguments.evaluations or arguments.seconds or arguments.plot or arguments.trials):
        raise InputError(
            "`domainfusion compare --left_out` takes no --evaluations, --seconds, --plot or --trials: leave them out."
        )
    only = [name for name in arguments.only.split(",") if name]
    comparison = (
        compare_left_out(arguments.sweeps) if arguments.left_out else compare(arguments.sweeps, only, arguments.trials)
    )
    print(markdown(comparison, arguments.evaluations, arguments.seconds))
    if arguments.plot:
        write_atomically(arguments.plot, plot(comparison, SECONDS if arguments.seconds else EVALUATIONS))
        print(arguments.plot)
    if arguments.left_out:
        print(best_arms(comparison))


def _keep(arguments: argparse.Namespace) -> None:
    from ..report.jobs import read_sweep
    from ..report.kept import write_kept

    add_our_names_to_the_host()
    _know_described_datasets([arguments.input_dir])
    write_kept(read_sweep(arguments.input_dir), arguments.output)
    print(arguments.output)


def _figures(arguments: argparse.Namespace) -> None:
    from ..report.figures import write_figures

    add_our_names_to_the_host()
    for path in write_figures(arguments.job, arguments.output, arguments.draws, arguments.ldm, arguments.data_dir):
        print(path)


def _ld_curve(arguments: argparse.Namespace) -> None:
    from ..hosting.checks import check_hparams_text
    from ..report.ld_curve import write_ld_curve

    add_our_names_to_the_host()
    given = check_hparams_text(arguments.hparams or "{}")
    if arguments.ldm:
        given["ldm"] = arguments.ldm
    for path in write_ld_curve(arguments.data, arguments.output, given, arguments.images, arguments.seed):
        print(path)


def _predict(arguments: argparse.Namespace) -> None:
    from ..runs.predict import predict

    add_our_names_to_the_host()
    predict(
        arguments.model, arguments.images, arguments.output, arguments.class_names, arguments.data_dir, arguments.top
    )


def _generate(arguments: argparse.Namespace) -> None:
    from ..hosting.checks import check_hparams_text
    from ..runs.generate import generate_from_folder, generate_from_run

    add_our_names_to_the_host()
    if arguments.rounds is not None and arguments.rounds < 1:
        raise InputError(f"--rounds is {arguments.rounds}, but must be 1 or more.")
    if arguments.job:
        for name in ("ldm", "classifier", "hparams", "seed"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} goes with --data: with --run the images are those that the run made.")
        generate_from_run(arguments.job, arguments.output, arguments.rounds)
        return
    given = check_hparams_text(arguments.hparams or "{}")
    if arguments.ldm:
        given["ldm"] = arguments.ldm
    generate_from_folder(
        arguments.data, arguments.output, given, arguments.classifier, arguments.rounds or 1, arguments.seed or 0
    )
