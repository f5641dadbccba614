"""One file from a web server. A transfer that was cut goes on where it ended, also in a later process."""

import base64
import hashlib
import http.client
import os
import time
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from .. import __version__
from ..errors import InputError

BLOCK = 1 << 20  # bytes read at a time, at most
PASSING = (408, 416, 425, 429)  # answers below 500 after which another attempt may succeed


class SourceFailed(Exception):
    """A source did not give the dataset. The message is one sentence; another source may do."""


@dataclass(frozen=True)
class Patience:
    """How long to hope for a server."""

    timeout: float = 60.0  # seconds without a byte until an attempt ends
    attempts: int = 5  # attempts in a row that bring no new byte until the file is given up
    wait: float = 3.0  # seconds from one attempt to the next


def transfer(url: str, path: Path, patience: Patience, sha256: str = "") -> None:
    """Download `url` to `path`. Until it is whole it is `path`.partial, from which a later call goes on.

    The file is compared with `sha256` if one is given, and with the MD5 that the server states for it, if it does.
    Raises SourceFailed if the server gives up, sends a web page, or sends other bytes than the checksum's; InputError
    if the disk is full.
    """
    partial = path.with_name(f"{path.name}.partial")
    longest, fruitless = _size(partial), 0
    while True:
        try:
            md5 = _one_attempt(url, partial, patience.timeout)
            break
        except HTTPError as error:
            if error.code < 500 and error.code not in PASSING:
                raise SourceFailed(f"{url}: the server answers {error.code} {error.reason}.") from error
            if error.code == 416:  # what is here is longer than the file there
                _forget(partial)
            cause = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = str(getattr(error, "reason", error)) or type(error).__name__
        fruitless = 0 if _size(partial) > longest else fruitless + 1
        longest = max(longest, _size(partial))
        if fruitless >= patience.attempts:
            kept = "; what has come is kept, and the next attempt goes on from there" if _size(partial) else ""
            raise SourceFailed(f"{url}: nothing new came in {fruitless} attempts ({cause}){kept}.")
        time.sleep(patience.wait)
    for name, expected in (("sha256", sha256.lower()), ("md5", md5)):
        if expected and (found := digest_of_file(partial, name)) != expected:
            _forget(partial)
            raise SourceFailed(f"{url}: the {name} of what came is {found} and not {expected}; it was deleted.")
    os.replace(partial, path)
    _forget(partial)


def _one_attempt(url: str, partial: Path, timeout: float) -> str:
    """Ask once for what is missing, and append it. Returns the MD5 that the server states, or ""."""
    start = _size(partial)
    request = Request(url, headers={"User-Agent": f"domainfusion/{__version__}", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version := _version_file(partial).read_text() if _version_file(partial).exists() else "":
            request.add_header("If-Range", version)  # another version at the server: all of it, from its beginning
    with urlopen(request, timeout=timeout) as response:
        if response.headers.get_content_type() == "text/html":
            raise SourceFailed(
                f"{url}: the server sends a web page and no file; Google Drive does so if it is asked too often."
            )
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _forget(partial)
            raise ConnectionError("the server sent another part of the file than the one asked for")
        rest = response.headers.get("Content-Length")
        total = None if rest is None else int(rest) + (start if resumed else 0)
        _receive(response, partial, start if resumed else 0, total)
        return _stated_md5(response.headers, whole=not resumed)


def _receive(response: http.client.HTTPResponse, partial: Path, start: int, total: int | None) -> None:
    """Write what comes after the first `start` bytes of `partial`. Raises ConnectionError if it ends too early."""
    with _written(partial, "ab" if start else "wb") as file:
        if not start:
            tag = response.headers.get("ETag", "")
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            _version_file(partial).write_text(version)
        name = partial.name.removesuffix(".partial")
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar:
            while block := response.read1(BLOCK):
                try:
                    file.write(block)
                    file.flush()
                except OSError as error:
                    raise _cannot_write(partial, error) from error
                bar.update(len(block))
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"the connection ended after {_size(partial):,} of {total:,} bytes")


def _written(partial: Path, mode: str):  # type: ignore[no-untyped-def]  # IO[bytes], whatever the mode
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        return open(partial, mode)
    except OSError as error:
        raise _cannot_write(partial, error) from error


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"Cannot write {path} ({error.strerror or error}): free some space or choose another --data_dir; what has come "
        "is kept."
    )


def _stated_md5(headers: Message, whole: bool) -> str:
    """The MD5 of the file that Google's and Azure's storage send along, in hex; "" without one."""
    stated = headers.get("x-ms-blob-content-md5") or (headers.get("Content-MD5") if whole else None) or ""
    for value in headers.get_all("x-goog-hash", []):
        for part in value.split(","):
            if part.strip().startswith("md5="):
                stated = part.strip().removeprefix("md5=")
    return base64.b64decode(stated).hex()


def digest_of_file(path: Path, name: str) -> str:
    """The digest of that name (md5, sha256), in hex."""
    digest = hashlib.new(name)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _version_file(partial: Path) -> Path:
    """Beside the partial file: the ETag or the date of the version that it belongs to."""
    return partial.with_name(f"{partial.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)
