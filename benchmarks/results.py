"""The results of a suite, as Markdown tables, as one line per ratio, and as JSON."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from domainbed_domainfusion.files import write_atomically

from . import machine
from .timing import Spread


@dataclass
class Table:
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@dataclass
class Results:
    """A suite's tables, its ratios by name (median and quartiles over the rounds), and its notes."""

    suite: str
    model: str
    settings: dict[str, object]  # batch size, dtype, repeats …
    tables: list[Table] = field(default_factory=list)
    ratios: dict[str, Spread] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # every single measurement

    def markdown(self, machine: dict) -> str:
        """Markdown of everything except `seconds`. Each ratio has a line of its own."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        parts = [f"## {self.suite}, {self.model} ({settings})"]
        parts += [table.markdown() for table in self.tables] + self.notes
        if self.ratios:
            parts.append("\n".join(["```", *self.ratio_lines(), "```"]))
        parts.append("; ".join(f"{name}: {value}" for name, value in machine.items()))
        return "\n\n".join(parts) + "\n"

    def ratio_lines(self) -> list[str]:
        return [f"{name} {ratio.median:.2f}" for name, ratio in self.ratios.items()]

    def write(self, path: Path, machine: dict) -> None:
        """Write JSON to `path`, and the Markdown to the same path with the suffix .md."""
        content = {
            "suite": self.suite,
            "model": self.model,
            "settings": self.settings,
            "machine": machine,
            "ratios": {name: ratio._asdict() for name, ratio in self.ratios.items()},
            "tables": [[dict(zip(table.columns, row)) for row in table.rows] for table in self.tables],
            "notes": self.notes,
            "seconds": self.seconds,
        }
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_atomically(path.with_suffix(".md"), self.markdown(machine))


def keep_and_print(results: Results, output: Path, module: str, device: str = "cpu") -> int:
    """The end of `python -m benchmarks.MODULE --output FILE.json …`. Returns the exit status 0."""
    described = machine.describe(device, [])
    described["command"] = " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]])
    results.write(output, described)
    print(results.markdown(described))
    return 0


def shown(spread: Spread, digits: int = 2) -> str:
    """`2.13 (2.11–2.16)`: median and quartiles."""
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"


def megabytes(count: float) -> str:
    return f"{count / 2**20:.1f}"
