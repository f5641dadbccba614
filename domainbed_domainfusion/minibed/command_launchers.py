"""Launchers: each takes the sweep's shell commands and sees that they are run."""

import subprocess
from collections.abc import Callable


def local_launcher(commands: list[str]) -> None:
    """One after another on this machine; a command that fails does not stop the next."""
    for command in commands:
        subprocess.call(command, shell=True)


def dummy_launcher(commands: list[str]) -> None:
    """Only print them."""
    for command in commands:
        print(f"Dummy launcher: {command}")


REGISTRY: dict[str, Callable[[list[str]], None]] = {"local": local_launcher, "dummy": dummy_launcher}
