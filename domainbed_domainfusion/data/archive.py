"""Unpacking a zip or tar archive that nobody has looked at yet."""

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import InputError
from .transfer import SourceFailed

#: What the readers of archives raise for bytes that they cannot make sense of; RuntimeError for a password.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into `folder`, which is made. The archive's type is read from its content, not from its name.

    Raises SourceFailed if it is no archive, is cut short or damaged, or has a path that leads outside `folder`;
    InputError if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        else:
            raise SourceFailed(f"what came is {_what_else(archive)}.")
    except DAMAGED as error:
        raise SourceFailed(f"the archive cannot be unpacked whole ({error}): it is cut short or damaged.") from error
    except OSError as error:
        raise InputError(
            f"Cannot unpack into {folder} ({error.strerror or error}): free some space or choose another --data_dir."
        ) from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            if _leads_outside(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
                raise _outside(info.filename)
        packed.extractall(folder)  # compares every file with its CRC


def _unpack_tar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise InputError("This Python cannot unpack a tar archive safely: take 3.10.12, 3.11.4 or a later one.")
    with tarfile.open(archive) as packed:
        try:
            packed.extractall(folder, filter="data")
        except tarfile.FilterError as error:
            raise _outside(error.tarinfo.name) from error


def _leads_outside(name: str) -> bool:
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    return path.is_absolute() or windows.anchor != "" or ".." in path.parts or ".." in windows.parts


def _outside(name: str) -> SourceFailed:
    return SourceFailed(
        f"the archive has a path that leads outside its folder, or a link ({name}): it was not unpacked."
    )


def _what_else(archive: Path) -> str:
    with open(archive, "rb") as file:
        head = file.read(512).lstrip()
    return "a web page and no archive" if head.startswith(b"<") else "neither a whole zip nor a whole tar archive"
