"""Running the host's scripts: the command, its environment variables, and the options of a job's command."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..hosting import host


def run_host_script(script: str, arguments: Sequence[str]) -> int:
    """Run `python -m <host>.scripts.<script> <arguments>` with this interpreter and return its exit status.

    The host's jobs say plain `python`, so the interpreter's own folder comes first on their PATH.
    """
    command = [sys.executable, "-m", f"{host.NAME}.scripts.{script}", *arguments]
    return subprocess.call(command, env=script_environment())


def script_environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment, with the interpreter's folder first on PATH.

    threads: how many threads each numerical library may use (OMP_NUM_THREADS); None leaves that as it is.
    """
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def command_options(command: str) -> dict[str, str]:
    """The options of a shell command: name → its values, joined by spaces."""
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for word in shlex.split(command):
        if word.startswith("--"):
            values = options.setdefault(word[2:], [])
        else:
            values.append(word)
    return {name: " ".join(words) for name, words in options.items()}
