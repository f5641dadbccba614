"""A safetensors file's table of contents, without reading a weight."""

import json
from pathlib import Path

from ..errors import InputError


def header(path: Path) -> dict[str, dict]:
    """Name -> {"dtype", "shape", "data_offsets"} of every tensor in a safetensors file.

    Raises InputError for a file that is not in this format, or whose length does not match its header.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length)) if length < path.stat().st_size else {}
        entries.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in entries.values())
        whole = path.stat().st_size == 8 + length + end
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged or only partly downloaded: delete it and fetch it again.")
    return entries
