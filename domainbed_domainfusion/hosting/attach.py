"""`domainfusion attach PATH`: one import at the end of a checkout's `domainbed/algorithms.py`, and its removal.

Every process of DomainBed imports that module before it looks up an algorithm or dataset, so `register` has run by
then. Before anything is written, the checkout's sources are parsed (never imported) to see whether they have all that
`register` relies on.
"""

import ast
import os
import stat
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ..errors import InputError
from ..files import write_atomically
from .hparams import TABLES

PATCHED = "domainbed/algorithms.py"
IMPORT = "import domainbed_domainfusion.register"
LINE = (
    f"{IMPORT}  # noqa: E402  adds SAM, DomainFusion, two zero-shot classifiers; undo: domainfusion attach . --detach"
)
DISTRIBUTION = "domainbed-domainfusion"

#: What `register` adds: (file, names that must not be taken there).
ADDED = (
    (PATCHED, tuple(TABLES)),
    ("domainbed/datasets.py", ("DigitStyles",)),
)

#: What `register` and our algorithms rely on: (file, name, parameters without self). None: any parameters will do.
REQUIRED = (
    (PATCHED, "ALGORITHMS", None),
    (PATCHED, "get_algorithm_class", ("algorithm_name",)),
    (PATCHED, "ERM.__init__", ("input_shape", "num_classes", "num_domains", "hparams")),
    (PATCHED, "ERM.update", ("minibatches", "unlabeled")),
    ("domainbed/datasets.py", "DATASETS", None),
    ("domainbed/datasets.py", "MultipleDomainDataset", None),
    ("domainbed/datasets.py", "MultipleEnvironmentImageFolder.__init__", ("root", "test_envs", "augment", "hparams")),
    ("domainbed/hparams_registry.py", "default_hparams", ("algorithm", "dataset")),
    ("domainbed/hparams_registry.py", "random_hparams", ("algorithm", "dataset", "seed")),
    ("domainbed/networks.py", "Featurizer", ("input_shape", "hparams")),
    ("domainbed/networks.py", "MNIST_CNN.__init__", ("input_shape",)),
    ("domainbed/command_launchers.py", "REGISTRY", None),
    (
        "domainbed/lib/fast_data_loader.py",
        "InfiniteDataLoader.__init__",
        ("dataset", "weights", "batch_size", "num_workers"),
    ),
    ("domainbed/lib/fast_data_loader.py", "FastDataLoader.__init__", ("dataset", "batch_size", "num_workers")),
    ("domainbed/lib/misc.py", "seed_hash", None),
    ("domainbed/lib/misc.py", "split_dataset", ("dataset", "n", "seed")),
)


def attach(path: str | Path) -> int:
    """Add our import to the checkout whose root folder is `path`. Idempotent. Returns the exit status 0.

    Raises InputError, and changes nothing, if there is no checkout, if it has an algorithm or dataset with one of our
    names, or if it is a version that does not fit (the sentence names the first difference).
    """
    target = _target(path)
    content = target.read_bytes()
    if _position(content) is None:
        _check_free(Path(path))
        _check_fits(Path(path))
        _replace(target, _with_line(content))
        print(f"Attached: {target} now ends with `{IMPORT}`; `domainfusion attach {path} --detach` takes it out again.")
    else:
        print(f"Already attached: {target}.")
    _print_if_not_installed()
    return 0


def check(path: str | Path) -> int:
    """Print whether the checkout is attached. Returns 0 if it is, 1 if it could be; raises InputError as `attach`."""
    target = _target(path)
    attached = _position(target.read_bytes()) is not None
    if attached:
        _check_fits(Path(path))
        print(f"Attached: {target}.")
        _print_if_not_installed()
        return 0
    _check_free(Path(path))
    _check_fits(Path(path))
    print(f"Not attached, and it fits: `domainfusion attach {path}` would add one line to {target}.")
    return 1


def detach(path: str | Path) -> int:
    """Remove our line; the file then has the same bytes as before `attach`. Idempotent. Returns 0."""
    target = _target(path)
    content = target.read_bytes()
    position = _position(content)
    if position is None:
        print(f"Not attached: {target}; nothing to undo.")
        return 0
    start, end = position
    _replace(target, content[:start] + content[end:])
    print(f"Detached: {target} is as it was.")
    return 0


def _target(path: str | Path) -> Path:
    target = Path(path, PATCHED)
    if not target.is_file():
        raise InputError(
            f"There is no DomainBed checkout in {path} ({PATCHED} is missing): give the root folder of a "
            "clone of https://github.com/facebookresearch/DomainBed."
        )
    return target


def _with_line(content: bytes) -> bytes:
    """`content` with our line at its end. If the file does not end with a newline, our line does not either."""
    newline = b"\r\n" if b"\r\n" in content else b"\n"
    if content and not content.endswith(b"\n"):
        return content + newline + LINE.encode()
    return content + LINE.encode() + newline


def _position(content: bytes) -> tuple[int, int] | None:
    """(start, end) of our line and of the newline that `attach` added with it; None if the line is not there."""
    start = 0
    for line in content.splitlines(keepends=True):
        if line.split(b"#")[0].strip() == IMPORT.encode():
            end = start + len(line)
            if not line.endswith(b"\n"):  # `attach` added the newline before it
                start -= len(b"\r\n") if content[:start].endswith(b"\r\n") else len(b"\n")
            return max(start, 0), end
        start += len(line)
    return None


def _replace(target: Path, content: bytes) -> None:
    mode = stat.S_IMODE(target.stat().st_mode)
    write_atomically(target, content)
    os.chmod(target, mode)


def _check_free(root: Path) -> None:
    """Raise InputError if the checkout has an algorithm or dataset with one of our names."""
    for file, names in ADDED:
        for node in _parse(root, file).body:
            taken = sorted(set(_bound_names(node)) & set(names))
            if taken:
                raise InputError(
                    f"This checkout already has a {taken[0]} of its own ({root / file}, line "
                    f"{node.lineno}): rename it first, ours would take its place; nothing was changed."
                )


def _check_fits(root: Path) -> None:
    """Raise InputError for the first entry of REQUIRED that the checkout lacks or has with other parameters."""
    for file, name, parameters in REQUIRED:
        node = _find(_parse(root, file), name)
        if node is None:
            raise _misfit(f"{root / file} has no {name}")
        found = tuple(argument.arg for argument in node.args.args) if isinstance(node, ast.FunctionDef) else ()
        found = found[1:] if "." in name else found
        if parameters is not None and found != parameters:
            raise _misfit(
                f"{name} in {root / file}, line {node.lineno}, takes ({', '.join(found)}) instead of "
                f"({', '.join(parameters)})"
            )


def _misfit(place: str) -> InputError:
    return InputError(
        f"This DomainBed is another version than ours fits: {place}; nothing was changed, use "
        "facebookresearch/DomainBed at b93c22a or tell us about yours."
    )


def _parse(root: Path, file: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the checkout's own string escapes
            return ast.parse((root / file).read_bytes())
    except FileNotFoundError as error:
        raise _misfit(f"{root / file} is missing") from error
    except SyntaxError as error:
        raise _misfit(f"{root / file}, line {error.lineno}, is not Python ({error.msg})") from error


def _bound_names(node: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _find(scope: ast.Module | ast.ClassDef, name: str) -> ast.stmt | None:
    """The last statement that binds a name such as `function` or `Class.method`, because that one wins in Python."""
    first, _, rest = name.partition(".")
    for node in reversed(scope.body):
        if first in _bound_names(node):
            if not rest:
                return node
            return _find(node, rest) if isinstance(node, ast.ClassDef) else None
    return None


def _print_if_not_installed() -> None:
    try:
        metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        print(
            f"{DISTRIBUTION} is not installed in this Python environment: install it (pip install) in the one that "
            "runs DomainBed, or its import will fail."
        )
