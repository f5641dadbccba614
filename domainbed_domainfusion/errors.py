"""The one exception for bad input, and how a command line ends with it."""

import difflib
import sys
from collections.abc import Callable, Iterable
from types import TracebackType

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


class InputError(Exception):
    """The user gave something that cannot work. The message is one sentence: what is wrong, and the remedy.

    An ordinary exception, so that a notebook can catch it. A command line prints the sentence alone and exits with
    status 1: see `exit_status`, and `register` for the host's own scripts.
    """


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command line and return its exit status: its own (None counts as 0), or 1 after an InputError.

    The InputError's sentence goes to stderr, without a traceback.
    """
    try:
        return command() or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 1


def sentence_hook(former: ExceptHook) -> ExceptHook:
    """A `sys.excepthook` that prints an InputError's sentence on the present `sys.stderr`.

    All other exceptions go to `former`. After either one Python ends the process with status 1.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, InputError):
            print(error, file=sys.stderr)
        else:
            former(kind, error, traceback)

    return hook


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in `known`; it offers the most similar known name."""
    known = list(known)
    lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)
    hint = f": did you mean {lower[nearest[0]]!r}?" if nearest else ""
    return InputError(f"There is no {kind} called {name!r}{hint} (known: {', '.join(known)}).")
