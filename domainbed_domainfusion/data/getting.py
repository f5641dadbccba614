"""`domainfusion data get`: a benchmark from the first source that gives it whole.

All work is done in data_dir/.getting-NAME: downloads, which an interrupted call leaves for the next one, and the
unpacked content. The dataset's own folder appears at the end, by one rename, when `check` has nothing against it.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError, unknown_name
from .archive import unpack
from .arrangement import find_environments
from .benchmarks import BENCHMARKS
from .findings import ERROR, Check, check
from .layout import read_layout
from .sources import SOURCES, Source
from .transfer import Patience, SourceFailed, digest_of_file, transfer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Errors of `check` that the published dataset itself may have.
ITS_OWN = ("duplicates-environments", "duplicates-classes")


def get(name: str, data_dir: Path, source: str = "", sha256: str = "", patience: Patience | None = None) -> Check:
    """Put the benchmark `name` below `data_dir`, and return its check.

    source: the address or the file of a zip or tar archive, to be used instead of the known sources; sha256: its
    checksum. Raises InputError if the benchmark is not known, if its folder exists (it is never changed), if another
    process is at it, or if no source gives the dataset whole; the sentence then names each source with its reason.
    """
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    if sha256 and not source:
        raise InputError("--sha256 is the checksum of one archive: name it with --source.")
    target = data_dir / BENCHMARKS[name].folder
    _must_not_exist(target)
    work = data_dir / f".getting-{name}"
    failures = []
    with _alone(work, name):
        for each in (Source((source,), sha256=sha256),) if source else SOURCES[name]:
            try:
                found = _from_source(name, each, work, patience or Patience())
                _must_not_exist(target)
                os.replace(found.layout.root, target)
            except SourceFailed as failed:
                failures.append(str(failed))
                print(failed, file=sys.stderr)
                continue
            finally:
                shutil.rmtree(work / "content", ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
            return dataclasses.replace(found, layout=read_layout(target))
    raise InputError(
        f"No source gave {name}: {' '.join(failures)} Name another archive with --source, an address or a file."
    )


def _from_source(name: str, source: Source, work: Path, patience: Patience) -> Check:
    """The check of the dataset in work/content. Raises SourceFailed; downloads that are of no use are deleted."""
    lists = [_fetched(address, work, patience) for address in source.lists]
    archives = [_fetched(address, work, patience, source.sha256) for address in source.archives]
    shutil.rmtree(work / "content", ignore_errors=True)
    try:
        for archive in archives:
            unpack(archive, work / "content")
        if source.arrange is not None:
            source.arrange(work / "content", lists)
        folder = find_environments(work / "content", len(BENCHMARKS[name].images))
        found = check(name, work, folder)
        wrong = [each for each in found.findings if each.level == ERROR and each.kind not in ITS_OWN]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise SourceFailed(f"its content is not the benchmark's: {wrong[0].sentence}{more}")
    except SourceFailed as failed:
        for download in (path for path in (*lists, *archives) if path.is_relative_to(work)):
            download.unlink(missing_ok=True)
        raise SourceFailed(f"{source.archives[0]}: {failed}") from failed
    return found


def _fetched(address: str, work: Path, patience: Patience, sha256: str = "") -> Path:
    """The file of that address: itself if it lies on this machine, else its download. Raises SourceFailed."""
    if urlsplit(address).scheme not in ("http", "https"):
        if not Path(address).is_file():
            raise InputError(f"There is no file {address}: --source is an http address, or a zip or tar file here.")
        if sha256 and (found := digest_of_file(Path(address), "sha256")) != sha256.lower():
            raise SourceFailed(f"{address}: its sha256 is {found} and not {sha256.lower()}.")
        return Path(address)
    last = Path(urlsplit(address).path).name or "download"
    path = work / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{last}"
    if not path.exists():
        transfer(address, path, patience, sha256)
    return path


def _must_not_exist(target: Path) -> None:
    if os.path.lexists(target):
        raise InputError(f"{target} exists already and is left as it is: check it, or move it away to get it anew.")


@contextlib.contextmanager
def _alone(work: Path, name: str) -> Iterator[None]:
    """Make the folder, and hold its lock; the system frees it when the process ends. InputError if it is held."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "a") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise InputError(f"Another process is getting {name} into {work.parent}: wait for it.") from error
            yield
    except OSError as error:
        raise InputError(
            f"Cannot write {work} ({error.strerror or error}): free some space or choose another --data_dir."
        ) from error
