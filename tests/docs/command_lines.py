"""The commands of the pages, given to the real argument parsers without running anything."""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domainbed_domainfusion import cli
from domainbed_domainfusion.hosting import checks, host
from domainbed_domainfusion.sweeping import mirror, status, sweep_files

from .pages import ROOT


class Parsed(Exception):
    """A program has read its arguments and found them right."""


def verbs(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """The verbs of `domainfusion` with their parsers."""
    (action,) = [each for each in (parser or cli._parser())._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(action.choices)


def flags(verb: str) -> set[str]:
    """The options that a verb knows; those of sweep and estimate are the host's sweep's and a few of their own."""
    parser = verbs()[verb]
    below = verbs(parser).values() if parser._subparsers else ()
    known = {option for each in (parser, *below) for action in each._actions for option in action.option_strings}
    known |= {"--help"}
    if verb in ("sweep", "estimate"):
        known |= {option for action in sweep_files.parser()._actions for option in action.option_strings}
        known |= {"--json"} if verb == "estimate" else {"--dry-run", "--check"}
    if verb == "sweep":
        parsers = (status.parser(), mirror.parser())
        known |= {option for each in parsers for action in each._actions for option in action.option_strings}
    return known


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def parse(words: list[str]) -> None:
    """Give a command to its program's parser. AssertionError, InputError or SystemExit if it is wrong.

    Commands of other programs (git, pip) pass.
    """
    program, *arguments = words
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert targets and set(targets) <= make_targets(), f"the Makefile has no target {shlex.join(words)}"
    elif program == "domainfusion":
        _parse_domainfusion(arguments)
    elif program == "python" and arguments[0] == "-m":
        _parse_module(arguments[1], arguments[2:])
    else:
        assert program in ("git", "pip", "cd", "mkdir", "python"), f"nobody knows how to check {shlex.join(words)}"


def _parse_domainfusion(arguments: list[str]) -> None:
    parser, verb = cli._parser(), arguments[0]
    for each in verbs(parser).values():
        each.allow_abbrev = False  # a page writes names in full
    given = parser.parse_args(arguments)
    if verb in ("sweep", "estimate"):
        rest = [word for word in given.arguments if word != "--json" or verb == "sweep"]
        if verb == "sweep" and rest[0] == "status":
            status.parser().parse_args(rest[1:])
            return
        if verb == "sweep" and rest[0] == "mirror":
            mirror.parser().parse_args(rest[1:])
            return
        if verb == "sweep":
            assert rest[0] in ("launch", "delete_incomplete", "--dry-run", "--check"), rest[0]
            rest = rest[1:]
        while rest and not rest[0].startswith("-"):
            sweep_files.read(ROOT / rest.pop(0))
        check_hparams(sweep_files.parser().parse_args(rest))
    elif verb == "generate" and given.hparams:
        check_hparams(given)


def _parse_module(module: str, arguments: list[str]) -> None:
    if module.startswith("domainbed.scripts."):
        module = f"{host.EMBEDDED}{module.removeprefix('domainbed')}"  # the same arguments
    if arguments and module == f"{host.EMBEDDED}.scripts.sweep":
        assert arguments[0] in ("launch", "delete_incomplete")
        given = sweep_files.parser().parse_args(arguments[1:])
        assert given.data_dir and given.output_dir and given.command_launcher
        check_hparams(given)
    elif arguments:
        assert _parses(module, arguments), f"{module} parses no arguments"
    else:
        path = ROOT / Path(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"there is no module {module}"


def _parses(module: str, arguments: list[str]) -> bool:
    """Whether the program got as far as to parse them. SystemExit if they are wrong."""
    try:
        with stopped_after_parsing():
            run_module(module, arguments)
    except Parsed:
        return True
    return False


def check_hparams(given: Any) -> None:
    if given.hparams is not None:
        checks.check_hparams_text(given.hparams)


@contextlib.contextmanager
def stopped_after_parsing() -> Iterator[None]:
    """Within it, every argument parser raises Parsed when its arguments are right."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        self.allow_abbrev = False  # a page writes names in full
        original(self, args, namespace)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_args
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original


def run_module(module: str, arguments: list[str]) -> None:
    """`python -m module arguments` in this process, its output left out."""
    argv = sys.argv
    sys.argv = [module, *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
            runpy.run_module(module, run_name="__main__")
    finally:
        sys.argv = argv
