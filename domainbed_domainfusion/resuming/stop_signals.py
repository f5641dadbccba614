"""SIGTERM and SIGUSR2, with which clusters announce the end of a job's time."""

import os
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class StopSignals:
    """Calls `on_stop(signal number)` in the process that made it, in its main thread.

    Loader workers are forked and inherit the handler. In them it does nothing, so one signal to all processes of a job
    asks once. A worker that ends by the signal would raise in the main process in the middle of a step (torch's handler
    of SIGCHLD). After a stop signal that handler is taken away, so that the step can end.
    """

    def __init__(self, on_stop: Callable[[int], None]):
        self._process, self._on_stop = os.getpid(), on_stop
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._on_stop(number)
