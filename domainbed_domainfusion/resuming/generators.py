"""The states of the global random generators as bytes: torch's (CPU and CUDA), numpy's legacy one and Python's.

A step that draws changes few bytes of a state, so the journal keeps the difference of two states, compressed.
"""

import base64
import random
import struct
import zlib

import numpy as np
import torch

# The words are packed as bytes: one by one they would take half of the time, and every step packs them.
_PYTHON = struct.Struct("<q2500s?d")  # version, 624 words and the position, whether there is a spare normal, the normal
_NUMPY = struct.Struct("<2496sqqd")  # 624 words, position, whether there is a spare normal, the normal


def state() -> bytes:
    """The present states. As many bytes at every call of a process."""
    version, words, spare = random.getstate()
    python = _PYTHON.pack(version, np.array(words, np.uint32).tobytes(), spare is not None, spare or 0.0)
    _, keys, position, has_normal, normal = np.random.get_state()
    legacy_numpy = _NUMPY.pack(np.asarray(keys, np.uint32).tobytes(), position, has_normal, normal)
    parts = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return b"".join([python, legacy_numpy, *(part.numpy().tobytes() for part in parts)])


def set_state(content: bytes) -> None:
    """Put back what `state` returned. Raises ValueError if this machine has other generators, as other GPUs."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    lengths = [_PYTHON.size, _NUMPY.size, len(cpu), *map(len, cuda)]
    if sum(lengths) != len(content):
        raise ValueError("the states of random generators are not of this machine")
    ends = np.cumsum(lengths)
    python, legacy_numpy, *parts = (content[end - length : end] for end, length in zip(ends, lengths))
    version, words, has_spare, spare = _PYTHON.unpack(python)
    random.setstate((version, tuple(np.frombuffer(words, np.uint32).tolist()), spare if has_spare else None))
    keys, position, has_normal, normal = _NUMPY.unpack(legacy_numpy)
    np.random.set_state(("MT19937", np.frombuffer(keys, np.uint32), position, has_normal, normal))
    tensors = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts]
    torch.set_rng_state(tensors[0])
    if cuda:
        torch.cuda.set_rng_state_all(tensors[1:])


def difference(before: bytes, after: bytes) -> str | None:
    """What turns `before` into `after`, as text; None if they are equal."""
    if before == after:
        return None
    return base64.b64encode(zlib.compress(_xor(before, after), 1)).decode()


def applied(before: bytes, change: str | None) -> bytes:
    """`after`, from `before` and their difference."""
    return before if change is None else _xor(before, zlib.decompress(base64.b64decode(change)))


def fingerprint(content: bytes) -> int:
    """32 bits that tell states apart."""
    return zlib.crc32(content)


def _xor(one: bytes, other: bytes) -> bytes:
    return (np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).tobytes()
