"""`domainfusion data add`: a folder, or the images that a manifest names in it, as a dataset of the host."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .findings import Check, check_folder
from .layout import read_layout
from .manifest import link, read_manifest
from .own_datasets import Description, add, check_description, check_name, describe, described_folder


def add_folder(name: str, folder: Path, data_dir: Path, **given: Any) -> tuple[Path, Check]:
    """Write the dataset.json of a folder environment/class/image. Returns its path and what `check` says.

    given: values of `Description`, None for the default. Raises InputError, and nothing is written then.
    """
    description = describe(name, folder, data_dir, **given)
    written = add(description, data_dir)
    return written, check_folder(name, described_folder(name, data_dir), description.environments)


def add_manifest(name: str, folder: Path, manifest: Path, data_dir: Path, **given: Any) -> tuple[Path, Check]:
    """Make data_dir/name/images-DIGEST, a folder of links to the images that `manifest` names in `folder`, and add it.

    Returns the path of the dataset.json, and what `check` says. A new manifest makes a new folder of links; the old one
    stays for runs that read it. Raises InputError, and nothing is written then.
    """
    check_name(name)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give the one from which the paths in {manifest} start.")
    folder = folder.resolve()
    rows = read_manifest(manifest, folder)
    place = f"images-{hashlib.sha256(repr((str(folder), rows)).encode()).hexdigest()[:12]}"
    with _working_folder(data_dir, name) as work:
        # As deep as it will be in data_dir/name, so that relative links hold.
        link(rows, folder, work / place, relative=folder.is_relative_to(data_dir.resolve()))
        description = replace(describe(name, work / place, data_dir, **given), folder=place)
        found = _check(description, work / place, rows_of=folder)
        target = data_dir / name / place
        made = [path for path in (target, target.parent) if not path.exists()]
        try:
            target.parent.mkdir(exist_ok=True)
            if target in made:
                os.replace(work / place, target)
            return add(description, data_dir), replace(found, layout=read_layout(target))
        except (InputError, OSError) as error:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"Cannot write {target} ({error.strerror or error}): choose another --data_dir."
            ) from error


def _check(description: Description, root: Path, rows_of: Path) -> Check:
    """What `check` says of the links in `root`. Raises InputError if the dataset could not be used."""
    check_description(description)
    found = check_folder(description.name, root, description.environments)
    for finding in found.findings:
        if finding.kind == "unreadable":
            first = (root / finding.files[0]).resolve()
            raise InputError(
                f"{len(finding.files)} images cannot be read whole, the first is {first}: copy it anew into {rows_of}, "
                "or take out its row."
            )
    return found


@contextlib.contextmanager
def _working_folder(data_dir: Path, name: str) -> Iterator[Path]:
    """A folder in data_dir that is gone at the end."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".adding-{name}-", dir=data_dir))
    except OSError as error:
        raise InputError(f"Cannot write into {data_dir} ({error.strerror or error}): choose another.") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
