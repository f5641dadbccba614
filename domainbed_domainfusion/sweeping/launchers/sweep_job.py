"""One job of a sweep as its launcher sees it: the command, and what its folder tells about it."""

import json
from pathlib import Path

from ...files import last_line, tail
from ..host_scripts import command_options


class SweepJob:
    """A shell command that trains, and the progress that its results file shows. str() names it in one line."""

    def __init__(self, command: str):
        self.command = command
        self.options = command_options(command)
        self.folder = Path(self.options["output_dir"]) if "output_dir" in self.options else None

    def __str__(self) -> str:
        if "algorithm" not in self.options:
            return self.command
        shown = [self.options[key] for key in ("algorithm", "dataset") if key in self.options]
        return " ".join([*shown, "test_envs", self.options.get("test_envs", "0")])

    def step(self) -> int:
        """The last step in results.jsonl, or -1 if there is none yet."""
        lines = tail(self.folder / "results.jsonl").split("\n") if self.folder is not None else []
        for line in reversed(lines[:-1]):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue
        return -1

    def share(self) -> float:
        """The finished share of the job's steps, in [0, 1]. It is 0 if the command does not say how many there are."""
        steps = int(self.options.get("steps", 0))
        return min(1.0, (self.step() + 1) / steps) if steps else 0.0

    def status(self) -> str:
        step = self.step()
        return f"{self} {f'step {step}' if step >= 0 else 'starting'}"

    def last_error(self, otherwise: str = "") -> str:
        """The last line of err.txt; of `otherwise`, a text, if the job ended before it wrote to err.txt."""
        written = last_line(tail(self.folder / "err.txt")) if self.folder is not None else ""
        return written or last_line(otherwise) or "no error message"
