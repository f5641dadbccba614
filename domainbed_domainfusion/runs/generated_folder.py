"""Generated images as an image folder, environment/class/image.png, with the provenance of every image.

Each PNG holds its provenance as text. So a later call sees which images exist and whether they have the same sources
and settings. `provenance.csv` is a table of these texts.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from ..errors import InputError
from ..files import write_atomically

KEY = "domainfusion"  # keyword of the PNG's iTXt chunk
TABLE = "provenance.csv"
CHOICES = ("content", "style")  # known only once an image has been generated


class GeneratedFolder:
    """Writes images below `root`. Existing images with the same source and settings are kept.

    Raises InputError if `root` exists and is not empty, and is not a folder of generated images.
    """

    def __init__(self, root: Path):
        self.root = root
        self.rows: dict[str, dict[str, Any]] = {}
        if (root / TABLE).is_file():
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"{root} is there and holds no generated images: give --output a new folder.")
        write_atomically(root / TABLE, "file\n")  # first, so that an interrupted call can be repeated here

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether the image `row["file"]` exists, is complete and has this provenance. CHOICES are not compared.

        Raises InputError if its provenance differs.
        """
        found = read_provenance(self.root / row["file"])
        if found is None:
            return False
        row = json.loads(json.dumps(row))
        for name in sorted(set(found) | set(row) - set(CHOICES)):
            if name in row and name not in CHOICES and found.get(name) != row[name]:
                raise InputError(
                    f"{self.root / row['file']} was generated otherwise ({name}: {found.get(name)} there, "
                    f"{row[name]} here): give --output another folder."
                )
        self.rows[row["file"]] = found
        return True

    def write(self, row: dict[str, Any], image: torch.Tensor) -> None:
        """Write (3, S, S) uint8 to `row["file"]`. Raises InputError if the disk is full. Existing files stay."""
        text = PngImagePlugin.PngInfo()
        text.add_itxt(KEY, json.dumps(row))
        png = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG", pnginfo=text)
        write_atomically(self.root / row["file"], png.getvalue())
        self.rows[row["file"]] = json.loads(json.dumps(row))

    def finish(self) -> None:
        """Write provenance.csv, one row per image, sorted by file. Print a line if an environment lacks a class."""
        rows = [self.rows[file] for file in sorted(self.rows)]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        write_atomically(self.root / TABLE, text.getvalue())
        classes = {row["class"] for row in rows}
        for environment in sorted({row["environment"] for row in rows}):
            missing = classes - {row["class"] for row in rows if row["environment"] == environment}
            if missing:
                print(
                    f"The environment {environment} has no image of {', '.join(sorted(missing))}: where DomainBed "
                    "reads this folder labels would not agree; leave the class or the environment out."
                )


def read_provenance(path: Path) -> dict[str, Any] | None:
    """The provenance in a PNG, or None if the file is missing or damaged."""
    try:
        with Image.open(path) as image:
            image.load()
            return json.loads(image.text[KEY])  # type: ignore[attr-defined]  # a PNG's; others raise below
    except (OSError, SyntaxError, ValueError, KeyError, AttributeError):
        return None


def folder_names(names: Iterable[str]) -> list[str]:
    """A folder name for each name. All differ in more than case, because some file systems ignore case."""
    made: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w .()+-]", "_", name).strip(" .") or "_"
        free, number = plain, 2
        while free.lower() in [other.lower() for other in made]:
            free, number = f"{plain}-{number}", number + 1
        made.append(free)
    return made


def png_names(sources: list[str]) -> list[str]:
    """a/b.jpg → a/b.png. If images differ only in suffix or case, the suffix is kept: a/b.jpg.png."""
    stems = [str(Path(source).with_suffix("")) for source in sources]
    seen: dict[str, int] = {}
    for stem in stems:
        seen[stem.lower()] = seen.get(stem.lower(), 0) + 1
    return [f"{stem}.png" if seen[stem.lower()] == 1 else f"{source}.png" for source, stem in zip(sources, stems)]


def _cell(value: Any) -> Any:
    return ";".join(map(str, value)) if isinstance(value, list) else value
