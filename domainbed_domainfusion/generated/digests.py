"""SHA-256 digests of tensors, weights and files: what tells two of them apart."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(module: torch.nn.Module) -> str:
    """Of a module's state: two classifiers of one digest are the same bit for bit."""
    return tensors_digest(module.state_dict())


def files_digest(files: Sequence[Path], root: Path) -> str:
    """Of files, in their order, with their paths below `root`, or their names alone where they lie elsewhere."""
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        digest.update(f"{name}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()
