"""Launchers: each runs the shell commands of a sweep."""

import subprocess
from collections.abc import Callable


def local_launcher(commands: list[str]) -> None:
    """Run the commands one after another on this machine; a failed command does not stop the next."""
    for command in commands:
        subprocess.call(command, shell=True)


def dummy_launcher(commands: list[str]) -> None:
    """Only print the commands."""
    for command in commands:
        print(f"Dummy launcher: {command}")


REGISTRY: dict[str, Callable[[list[str]], None]] = {"local": local_launcher, "dummy": dummy_launcher}
