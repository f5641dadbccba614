"""The Markdown pages as tests see them: fenced blocks with their markers, inline code, links.

A block of commands is fenced as `sh`. The comment on the line before it says how its commands are checked:

    <!-- test: here -->                              test_commands.py runs it
    <!-- test: tests/test_cli.py::test_name -->      that test runs its commands
    <!-- needs: GPU, hours -->                       no test can run it; its arguments are parsed all the same
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (
    ROOT / "SECURITY.md",
    README,
    ROOT / "RESULTS.md",
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "sweeps" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "domainbed_domainfusion" / "pocket" / "ldm" / "README.md",
)
#: What a command may need that a test cannot give it.
NEEDS = {"GPU", "cluster", "weights", "network", "minutes", "hours"}
MARKER = re.compile(r"<!-- (test|needs): (.+) -->$")
COMMAND = re.compile(r"(?:\.venv/bin/)?(?:domainfusion|make|python)\s")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int  # of its opening fence
    language: str
    kind: str | None  # of its marker: test or needs
    values: tuple[str, ...]  # of its marker
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command: comments left out, lines joined, `a && b` split."""
        text = re.sub(r"(^|\s)# .*$", "", self.text, flags=re.M).replace("\\\n", " ")
        lexer = shlex.shlex(text, posix=True, punctuation_chars="&\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        commands: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set("&\n"):
                commands.append([])
            else:
                commands[-1].append(word)
        return [words for words in commands if words]


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
            continue
        marker = MARKER.match(lines[start - 1]) if start else None
        kind, values = (marker[1], tuple(marker[2].split(", "))) if marker else (None, ())
        found.append(Block(page, start + 1, lines[start][3:], kind, values, "\n".join(lines[start + 1 : i])))
        start = None
    assert start is None, f"{page}: the block that line {start} opens does not end"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def inline_code(page: Path) -> list[str]:
    """What stands in backticks outside of blocks; a line's end in it is a space."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """The targets of links and pictures."""
    text = prose(page)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """The fragments that its headings make, as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
