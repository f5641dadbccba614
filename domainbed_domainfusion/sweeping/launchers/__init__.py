"""The launchers that `register` adds to the host's: one file each.

A launcher takes the shell commands of a sweep's jobs and returns when all have ended.
"""

from collections.abc import Callable

from . import cores

LAUNCHERS: dict[str, Callable[[list[str]], None]] = {"cores": cores.launch}

#: Launchers whose jobs have checkpoints without being asked; see `resuming.switch`.
RESUMING = ("cores",)
