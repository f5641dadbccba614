"""Sweep files: an experiment as plain text. It resolves to arguments of the host's own sweep and to nothing else.

    # Comments. One of them states how many jobs the file makes:
    # Jobs: 720
    [pacs-resnet50]              a sweep begins; its jobs go to this folder in the launch's --output_dir
    --algorithms ERM SAM         one argument a line, written as in a shell
    --hparams '{"lr": 0.0001}'

Sweeps of the same folder share one results table, so no two of them may run the same algorithm on the same dataset.
`--data_dir`, `--output_dir` and `--command_launcher` are given at the launch.
"""

import argparse
import contextlib
import difflib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError, unknown_name
from ..hosting import checks, host, hparams

STATED_JOBS = re.compile(r"#\s*Jobs:\s*([\d,]+)\s*$")
FOLDER = re.compile(r"\[([A-Za-z0-9][\w.-]*)\]$")
LAUNCH_ARGUMENTS = ("data_dir", "output_dir", "command_launcher", "skip_confirmation")


@dataclass(frozen=True)
class Sweep:
    """One sweep of a file."""

    file: Path
    line: int  # the line of its [folder]
    folder: str
    arguments: tuple[str, ...]  # arguments of the host's sweep as written, without the verb
    lines: dict[str, int]  # name of an argument → its line in the file

    def argv(self, extra: Sequence[str]) -> list[str]:
        """The arguments of the host's sweep: the file's, then `extra`. --output_dir becomes <its value>/<folder>."""
        folder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        folder.add_argument("--output_dir")
        given, others = folder.parse_known_args(list(extra))
        return [*self.arguments, *others, "--output_dir", str(Path(given.output_dir, self.folder))]

    def given(self, extra: Sequence[str] = ()) -> argparse.Namespace:
        """The file's arguments and `extra`, parsed. The host's defaults stand for all others."""
        return parser().parse_args([*self.arguments, *extra])

    def jobs(self, extra: Sequence[str]) -> list[Any]:
        """The host's own list of jobs: arguments, folder, command and state on disk of each run of its train script."""
        return jobs_of(parser().parse_args(self.argv(extra)))  # with the folder in --output_dir


def jobs_of(given: argparse.Namespace) -> list[Any]:
    """The host's own jobs for the parsed arguments of its sweep (see `parser`)."""
    sweep = host.module("scripts.sweep")
    args_list = sweep.make_args_list(
        n_trials=given.n_trials,
        dataset_names=given.datasets,
        algorithms=given.algorithms,
        n_hparams_from=given.n_hparams_from,
        n_hparams=given.n_hparams,
        steps=given.steps,
        data_dir=given.data_dir,
        task=given.task,
        holdout_fraction=given.holdout_fraction,
        single_test_envs=given.single_test_envs,
        hparams=given.hparams,
    )
    return [sweep.Job(args, given.output_dir) for args in args_list]


def jobs_of_arguments(arguments: Sequence[str]) -> list[Any]:
    """The jobs that the host's sweep makes of its arguments, as its own `Job` objects with their present states."""
    return jobs_of(parser().parse_args(list(arguments)))


@dataclass(frozen=True)
class SweepFile:
    """A sweep file that was read and passed all checks."""

    path: Path
    stated_jobs: int
    sweeps: tuple[Sweep, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}.")


def parser() -> argparse.ArgumentParser:
    """A parser of the arguments of the host's sweep, with its names and defaults. It raises InputError."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--datasets", nargs="+", default=[name for name in host.datasets.DATASETS if "Debug" not in name]
    )
    parser.add_argument("--algorithms", nargs="+", default=list(host.algorithms.ALGORITHMS))
    parser.add_argument("--task", default="domain_generalization")
    for name, default in (("n_hparams_from", 0), ("n_hparams", 20), ("seed", 0), ("n_trials", 3), ("steps", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--holdout_fraction", type=float, default=0.2)
    for name in ("data_dir", "output_dir", "command_launcher", "hparams"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--single_test_envs", action="store_true")
    parser.add_argument("--skip_confirmation", action="store_true")
    return parser


def read(path: Path) -> SweepFile:
    """Read a file and check everything in it. Raises InputError with the file, the line and the remedy."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"There is no sweep file {path} that can be read ({error}).") from error
    stated, sweeps = _sweeps(path, text.splitlines())
    if not sweeps:
        raise InputError(f"{path} holds no sweep: begin one with a line like [pacs-resnet50].")
    for sweep in sweeps:
        _check(sweep)
    _check_tables(sweeps)
    jobs = sum(len(sweep.jobs(["--data_dir", "data", "--output_dir", "runs"])) for sweep in sweeps)
    if stated is None:
        raise InputError(f"{path} does not state how many jobs it makes: add the line `# Jobs: {jobs:,}`.")
    line, number = stated
    if number != jobs:
        raise InputError(
            f"{path}, line {line}: it states {number:,} jobs, but its sweeps make {jobs:,}: mend the "
            f"sweeps, or write `# Jobs: {jobs:,}`."
        )
    return SweepFile(path, number, tuple(sweeps))


@contextlib.contextmanager
def _error_location(path: Path, line: int) -> Iterator[None]:
    """Put the file and the line before an InputError's sentence."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from error


def _sweeps(path: Path, lines: list[str]) -> tuple[tuple[int, int] | None, list[Sweep]]:
    """Returns the statement `# Jobs: N` as (line, N), or None if it is missing, and the sweeps."""
    stated: tuple[int, int] | None = None
    sweeps: list[Sweep] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        match = STATED_JOBS.match(line)
        if match:
            stated = number, int(match[1].replace(",", ""))
        if not line or line.startswith("#"):
            continue
        with _error_location(path, number):
            match = FOLDER.match(line)
            if match:
                sweeps.append(Sweep(path, number, match[1], (), {}))
            else:
                words = _words(line)
                if not sweeps:
                    raise InputError(f"{words[0]} stands before the first [folder]: begin a sweep first.")
                sweeps[-1] = _with_argument(sweeps[-1], words, number)
    return stated, sweeps


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise InputError(
            f"the quotes are not closed ({error}): write an argument and its values on one line."
        ) from error
    if not words[0].startswith("--"):
        raise InputError(
            f"{line!r} is neither [folder] nor an argument of the host's sweep (--name values) nor a # comment."
        )
    return words


def _with_argument(sweep: Sweep, words: list[str], line: int) -> Sweep:
    name = words[0][2:]
    if name in LAUNCH_ARGUMENTS:
        raise InputError(f"{words[0]} belongs to the launch: give it to `domainfusion sweep launch {sweep.file}`.")
    if name in sweep.lines:
        raise InputError(f"{words[0]} stands on line {sweep.lines[name]} already: leave one of the two.")
    if name == "test_envs":
        raise _no_test_envs(sweep, words[1:])
    known = [action.dest for action in parser()._actions if action.dest not in LAUNCH_ARGUMENTS]
    if name not in known:
        raise unknown_name("argument of the host's sweep", words[0], [f"--{each}" for each in known])
    if name == "hparams" and len(words) != 2:
        raise InputError("--hparams takes one JSON object in single quotes, like --hparams '{\"lr\": 0.0001}'.")
    parser().parse_args(words)
    return Sweep(sweep.file, sweep.line, sweep.folder, (*sweep.arguments, *words), {**sweep.lines, name: line})


def _no_test_envs(sweep: Sweep, given: list[str]) -> InputError:
    """The error for --test_envs: the host's train script has it, the host's sweep does not."""
    dataset = sweep.given().datasets[0]
    names = getattr(getattr(host.datasets, dataset, None), "ENVIRONMENTS", None) or []
    wrong = next((name for name in given if names and name not in names), None)
    hint = f" ({dataset} has no environment {wrong!r}; the nearest is {_nearest(wrong, names)!r})" if wrong else ""
    return InputError(
        f"the host's sweep takes no --test_envs{hint}: write --single_test_envs, which leaves out each "
        f"environment in turn{': ' if names else ''}{', '.join(names)}."
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    """The longest known name that `name` begins with (A for art_painting), else the most similar one."""
    prefixes = [each for each in known if name.lower().startswith(each.lower())]
    return max(prefixes, key=len) if prefixes else difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _check(sweep: Sweep) -> None:
    """Raise InputError for an unknown name, an hparam that no algorithm has, a bad value, or a sweep without jobs."""
    for name in ("datasets", "algorithms"):
        if name not in sweep.lines:
            raise InputError(
                f"{sweep.file}, line {sweep.line}: the sweep [{sweep.folder}] does not name its {name}: "
                f"add a line like --{name} {'PACS' if name == 'datasets' else 'ERM DomainFusion'}."
            )
    given = sweep.given()
    with _error_location(sweep.file, sweep.lines["datasets"]):
        for name in given.datasets:
            if not hasattr(getattr(host.datasets, name, None), "ENVIRONMENTS"):
                raise unknown_name("dataset", name, host.datasets.DATASETS)
            if not getattr(host.datasets, name).ENVIRONMENTS:
                raise InputError(
                    f"{name} does not name its environments, so the host's sweep cannot choose test environments: add "
                    "the list ENVIRONMENTS to its class."
                )
    with _error_location(sweep.file, sweep.lines["algorithms"]):
        for name in given.algorithms:
            if name not in host.algorithms.ALGORITHMS:
                raise unknown_name("algorithm", name, host.algorithms.ALGORITHMS)
    if given.hparams is not None:
        with _error_location(sweep.file, sweep.lines["hparams"]):
            _check_hparams(given)
    if given.n_trials < 1 or given.n_hparams <= given.n_hparams_from:
        raise InputError(
            f"{sweep.file}, line {sweep.line}: the sweep [{sweep.folder}] makes no job: --n_trials must "
            "be at least 1 and --n_hparams above --n_hparams_from."
        )


def _check_hparams(given: argparse.Namespace) -> None:
    values = checks.check_hparams_text(given.hparams)
    known = {row.name: row.default for row in hparams.EVERY_ALGORITHM}
    for algorithm in given.algorithms:
        for dataset in given.datasets:
            known.update(host.hparams_registry.default_hparams(algorithm, dataset))
    for name, value in values.items():
        if name not in known:
            raise InputError(
                f"no algorithm of this sweep ({', '.join(given.algorithms)}) has the hparam {name!r}: take it out."
            )
        if name not in hparams.ROWS and _kind(known[name]) != _kind(value):
            raise InputError(
                f"the hparam {name} is {value!r}, but must be {_kind(known[name])} like the host's "
                f"default, {json.dumps(known[name])}."
            )


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "null")


def _check_tables(sweeps: Sequence[Sweep]) -> None:
    """Raise InputError if two sweeps of one folder run the same algorithm on the same dataset.

    The host's tables would mix their runs. Identical sweeps in two files are allowed (the full method is one row of
    every ablation): they have the same jobs, which run once.
    """
    seen: dict[tuple, Sweep] = {}
    for sweep in sweeps:
        given = sweep.given()
        for cell in (
            (sweep.folder, algorithm, dataset) for algorithm in given.algorithms for dataset in given.datasets
        ):
            other = seen.setdefault(cell, sweep)
            identical = other.file != sweep.file and other.arguments == sweep.arguments
            if other is not sweep and not identical:
                raise InputError(
                    f"{sweep.file}, line {sweep.line}: [{sweep.folder}] runs {cell[1]} on {cell[2]}, as "
                    f"{other.file}, line {other.line} does: collect_results would mix them; give one of the two a "
                    "folder of its own."
                )


def check(paths: Sequence[Path]) -> int:
    """Read and check every file, and print how many sweeps and jobs it has. Returns 0; raises InputError."""
    files = [read(path) for path in paths]
    every = [sweep for file in files for sweep in file.sweeps]
    _check_tables(every)
    width = max(len(str(file.path)) for file in files)
    for file in files:
        print(f"{file.path!s:{width}}  {len(file.sweeps):3} sweep(s)  {file.stated_jobs:6,} jobs")
    folders = {job.output_dir for sweep in every for job in sweep.jobs(["--data_dir", "data", "--output_dir", "runs"])}
    print(
        f"{len(files)} files, {len(every)} sweeps, {sum(file.stated_jobs for file in files):,} jobs "
        f"({len(folders):,} different): every name is known, every hparam in range, every count as stated."
    )
    return 0
