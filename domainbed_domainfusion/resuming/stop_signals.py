"""SIGTERM and SIGUSR2, with which clusters announce the end of a job's time."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class StopSignals:
    """Calls `on_stop(signal number)` in the process that made it, in its main thread.

    A forked process inherits the handler. In it the handler does nothing.
    """

    def __init__(self, on_stop: Callable[[int], None]):
        self._process, self._on_stop = os.getpid(), on_stop
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self._on_stop(number)


def spare_workers(loader: Any) -> None:
    """Let the loader workers that `loader.__init__` starts never receive the stop signals.

    A cluster may send a signal to all processes of a job. A worker that it ended would be missing in the step that is
    to be finished. So the signals are blocked while the workers are forked, and a worker inherits that.
    """
    original = loader.__init__

    @functools.wraps(original)
    def wrapped(self, *args, **kwargs):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            original(self, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    loader.__init__ = wrapped


def end_workers() -> None:
    """End the loader workers when the process ends: multiprocessing would send them SIGTERM and wait for ever.

    torch's handler of SIGCHLD would report them as failed, so it is taken away.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
