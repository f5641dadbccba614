"""A manifest: one row for each image with its path, class and domain, as CSV or JSON.

It makes a dataset of images that lie anywhere in a folder. The hosts read folders environment/class/image, so such a
folder is made, of links to the images. No host, and no other part of this package, can tell the difference.
"""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import InputError
from .layout import differing_in_case_alone

COLUMNS = ("path", "class", "domain")


@dataclass(frozen=True, order=True)
class Row:
    """One image."""

    path: str  # below the dataset's folder, with "/"
    name: str  # of the class
    domain: str


def read_manifest(file: Path, folder: Path) -> list[Row]:
    """The rows in the order of their paths; `folder` is what the paths start from.

    Raises InputError that names the first thing wrong: with the file, a row, the classes or the paths.
    """
    rows = [_row(where, values, file) for where, values in _records(file)]
    if not rows:
        raise InputError(f"{file} names no image: it needs a row for each, with {', '.join(COLUMNS)}.")
    _check_names([row.domain for row in rows], "domains", file)
    _check_names([row.name for row in rows], "classes", file)
    _check_classes(rows, file)
    _check_paths(rows, file, folder)
    return sorted(rows)


def link(rows: Sequence[Row], folder: Path, place: Path, relative: bool) -> None:
    """Make `place`/domain/class/NUMBER-name, a link to each image. Raises InputError where there are no links.

    relative: links that hold as long as `place` and `folder` move together. `folder` is absolute. The numbers keep the
    images in the order of their paths, and equal names apart.
    """
    for number, row in enumerate(rows):
        image = folder / row.path
        name = place / row.domain / row.name / f"{number:06d}-{image.name}"
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            name.symlink_to(os.path.relpath(image, name.parent) if relative else image)
        except OSError as error:
            raise InputError(
                f"Cannot make the link {name} ({error.strerror or error}): where a file system has no links, copy the "
                "images to environment/class/image and leave --manifest out."
            ) from error


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the row's values) of each row. Raises InputError if there are no such columns."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            content = json.loads(text)
            if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
                raise ValueError("not a list of objects")
            yield from ((f"entry {number}", each) for number, each in enumerate(content, 1))
            return
        reader = csv.DictReader(text.splitlines(), strict=True)
        lacking = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if text.strip() and lacking:
            raise InputError(
                f"{file} lacks the column {' and '.join(lacking)}: its first line must name {', '.join(COLUMNS)}."
            )
        for values in reader:
            yield f"line {reader.line_num}", values
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{file} cannot be read as a manifest ({error}): it is a CSV file with a header, or a JSON list of objects "
            f"with {', '.join(COLUMNS)}."
        ) from error


def _row(where: str, values: dict[str, Any], file: Path) -> Row:
    texts = {column: str(values[column]).strip() for column in COLUMNS if values.get(column) is not None}
    if lacking := [column for column in COLUMNS if not texts.get(column)]:
        raise InputError(f"{file}, {where}: there is no {' and no '.join(lacking)}.")
    for column in ("class", "domain"):
        name = texts[column]
        if name.startswith(".") or set(name) & set('/\\:*?"<>|\0'):
            raise InputError(f"{file}, {where}: the {column} {name!r} cannot be a folder's name: choose another.")
    path = os.path.normpath(texts["path"])
    if os.path.isabs(path) or path.split(os.sep)[0] == "..":
        raise InputError(
            f"{file}, {where}: {texts['path']} is not inside the folder: paths start from the folder that is added."
        )
    return Row(Path(path).as_posix(), texts["class"], texts["domain"])


def _check_names(names: Iterable[str], what: str, file: Path) -> None:
    for spellings in differing_in_case_alone(names):
        raise InputError(
            f"The {what} {', '.join(spellings)} in {file} differ in upper and lower case alone: write them in one way."
        )


def _check_classes(rows: Sequence[Row], file: Path) -> None:
    classes = defaultdict(set)
    for row in rows:
        classes[row.domain].add(row.name)
    every = set().union(*classes.values())
    if len(every) < 2:
        raise InputError(f"{file} has the class {every.pop()} alone, but a classifier needs two or more.")
    for domain, names in sorted(classes.items()):
        if names != every:
            raise InputError(
                f"The domain {domain} in {file} has no image of {', '.join(sorted(every - names))}: every domain needs "
                "images of every class."
            )


def _check_paths(rows: Sequence[Row], file: Path, folder: Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.path in seen:
            raise InputError(f"{file} has {row.path} twice: an image has one class and one domain.")
        seen.add(row.path)
    for wrong, sentence in (
        ([row.path for row in rows if not row.path.lower().endswith(IMG_EXTENSIONS)], "have no image's extension"),
        ([row.path for row in rows if not (folder / row.path).is_file()], "are no files, or links to nowhere"),
    ):
        if wrong:
            raise InputError(
                f"{len(wrong)} of {len(rows)} paths in {file} {sentence}, the first is {wrong[0]}: mend {folder}, "
                "or take out its row."
            )
