"""SHA-256 digests of tensors, of a module's weights and of files."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The digest of named tensors: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(module: torch.nn.Module) -> str:
    """The digest of a module's state_dict. Modules with the same digest have the same state, bit for bit."""
    return tensors_digest(module.state_dict())


def files_digest(files: Sequence[Path], root: Path) -> str:
    """The digest of the files' names and contents, in the given order.

    A name is the path below `root`. A file outside `root` has its file name alone.
    """
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        digest.update(f"{name}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()
