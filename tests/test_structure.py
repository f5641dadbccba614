"""The house: rooms on floors, imports that go down only, and what each room may name.

FLOORS is the one place where the order is written. `python -m tests.test_structure` prints each room and its imports.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "domainbed_domainfusion"

#: From the ground up. A room imports from lower floors only; rooms of one floor do not know each other.
FLOORS = (
    ("digests", "errors", "files", "pixels", "seeding", "stopwatch"),
    ("pocket",),
    ("hosting", "diffusion"),
    ("generated", "data", "resuming"),
    ("algorithms",),
    ("runs",),
    ("report",),
    ("sweeping",),
    ("estimate", "register"),
    ("cli", "minibed"),
)
#: On the ground floor the others may raise InputError.
GROUND = {("files", "errors")}
#: The embedded host has DomainBed's names, whatever ours are.
DOMAINBEDS_NAMES = "minibed"
#: Who may import the diffusion library: the adapter, and the script that trained the embedded model.
DIFFUSERS = {"diffusion", "pocket"}


def room_of(path: Path) -> str:
    """`hosting` for `hosting/host.py`, `cli` for `cli.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def python_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import, also inside functions; `import a.b` has the name ""."""
    package = ("domainbed_domainfusion", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def rooms_imported(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, room, name) of every import of another room of the package."""
    for line, module, name in imports(path):
        parts = [*module.split("."), *([name] if name else [])]
        if parts[0] != "domainbed_domainfusion" or parts[1:2] == ["__version__"] or parts[1:2] == ["__doc__"]:
            continue
        if len(parts) > 1 and parts[1] != room_of(path):
            yield line, parts[1], name


def arrows() -> dict[str, set[str]]:
    """room -> the rooms that it imports."""
    found: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor}
    for path in python_files():
        found.setdefault(room_of(path), set()).update(room for _, room, _ in rooms_imported(path))
    return found


def test_every_room_stands_on_a_floor():
    assert sorted({room_of(path) for path in python_files()}) == sorted(room for floor in FLOORS for room in floor)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    height = {room: i for i, floor in enumerate(FLOORS) for room in floor}
    room = room_of(path)
    upward = [
        f"{path.name}:{line} imports {other}"
        for line, other, _ in rooms_imported(path)
        if height[other] >= height[room] and (room, other) not in GROUND
    ]
    assert not upward, "; ".join(upward)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_uses_anothers_private_names(path):
    private = [name for _, _, name in rooms_imported(path) if name.startswith("_")]
    assert not private, f"{path.name} imports {', '.join(private)}"


#: Forks for each module, so that torch is imported once for all of them.
IMPORT_FIRST = """
import importlib, os, sys, traceback
import diffusers, timm, torch, torchvision, transformers
failed = False
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            print("cannot be imported first:", name, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""


def test_every_module_that_the_host_imports_can_be_the_first_that_a_program_imports():
    """The host imports these rooms while it is imported itself."""
    files = [path for path in python_files() if room_of(path) in ("algorithms", "generated", "hosting", "resuming")]
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    first = [name.removesuffix(".__init__") for name in modules]
    ended = subprocess.run([sys.executable, "-c", IMPORT_FIRST, *first], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_diffusion_library_is_imported_in_its_room_only():
    users = {
        room_of(path)
        for path in python_files()
        for _, module, _ in imports(path)
        if module.split(".")[0] in ("diffusers", "transformers")
    }
    assert users == DIFFUSERS


def test_no_two_files_share_a_name():
    names: dict[str, list[str]] = {}
    for path in python_files():
        if path.name != "__init__.py" and room_of(path) != DOMAINBEDS_NAMES:
            names.setdefault(path.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


def test_every_room_says_what_lives_there_and_what_it_imports():
    for floor in FLOORS:
        for room in floor:
            if (PACKAGE / room).is_dir():
                text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
                assert text and "import" in text, f"{room}/__init__.py does not say what it may import"


def main() -> None:
    for i, floor in reversed(list(enumerate(FLOORS))):
        for room in floor:
            others = ", ".join(sorted(arrows()[room])) or "nothing"
            print(f"floor {i}  {room:<11} imports {others}")


if __name__ == "__main__":
    main()
