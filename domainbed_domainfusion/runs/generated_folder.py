"""Generated images as an image folder, environment/class/image.png, that says of every image where it is from.

Each PNG holds its own provenance as text, so what is there can be told from what is missing or was made otherwise, and
`provenance.csv` is a table of what the PNGs say.
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

KEY = "domainfusion"  # of the PNG's text
TABLE = "provenance.csv"
CHOICES = ("content", "style")  # known only once an image has been generated


class GeneratedFolder:
    """Writes images under `root`; images that are already there, from the same source and settings, are kept.

    Raises InputError if `root` holds anything else than a folder of generated images.
    """

    def __init__(self, root: Path):
        self.root = root
        self.rows: dict[str, dict[str, Any]] = {}
        if (root / TABLE).is_file():
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"{root} is there and holds no generated images: give --output a new folder.")
        write_atomically(root / TABLE, "file\n")  # from now on it is known as ours, however early the end

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether the image `row["file"]` is there, whole, with this provenance (the choices aside).

        Raises InputError if it was made otherwise.
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
        """Write (3, S, S) uint8 to `row["file"]`. Raises InputError if the disk is full; what is there stays."""
        text = PngImagePlugin.PngInfo()
        text.add_itxt(KEY, json.dumps(row))
        png = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG", pnginfo=text)
        write_atomically(self.root / row["file"], png.getvalue())
        self.rows[row["file"]] = json.loads(json.dumps(row))

    def finish(self) -> None:
        """Write provenance.csv, one row per image in the order of their names; say where a class is missing."""
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
    """What an image says of itself, or None if it is not there or not whole."""
    try:
        with Image.open(path) as image:
            image.load()
            return json.loads(image.text[KEY])  # type: ignore[attr-defined]  # a PNG's; others raise below
    except (OSError, SyntaxError, ValueError, KeyError, AttributeError):
        return None


def folder_names(names: Iterable[str]) -> list[str]:
    """One file-system name for each name, different from the others whatever the file system thinks of case."""
    made: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w .()+-]", "_", name).strip(" .") or "_"
        free, number = plain, 2
        while free.lower() in [other.lower() for other in made]:
            free, number = f"{plain}-{number}", number + 1
        made.append(free)
    return made


def png_names(sources: list[str]) -> list[str]:
    """a/b.jpg → a/b.png; where two images differ in their suffix only, a/b.jpg.png."""
    stems = [str(Path(source).with_suffix("")) for source in sources]
    seen: dict[str, int] = {}
    for stem in stems:
        seen[stem.lower()] = seen.get(stem.lower(), 0) + 1
    return [f"{stem}.png" if seen[stem.lower()] == 1 else f"{source}.png" for source, stem in zip(sources, stems)]


def _cell(value: Any) -> Any:
    return ";".join(map(str, value)) if isinstance(value, list) else value
