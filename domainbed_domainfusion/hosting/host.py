"""Which host runs us: `domainbed` if it can be imported, else the embedded `minibed`. Nothing else asks.

`host.algorithms`, `host.datasets`, `host.lib.misc` … are the host's own modules. They are looked up at the
first use, because the host imports us (its patch ends with `import domainbed_domainfusion.register`) while it is
itself half imported.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

from ..errors import InputError

EMBEDDED = "domainbed_domainfusion.minibed"


def _find() -> str:
    """A host that has already started importing wins (it is the one that runs us); else DomainBed if it is there."""
    for name in ("domainbed", EMBEDDED):
        if f"{name}.algorithms" in sys.modules:
            return name
    return "domainbed" if importlib.util.find_spec("domainbed") else EMBEDDED


NAME = _find()


def module(name: str) -> ModuleType:
    """The host's module of that name, e.g. `module("lib.misc")`."""
    return importlib.import_module(f"{NAME}.{name}")


def check_imports() -> None:
    """Import the host's algorithms. Raises InputError if a package that the host needs is not installed."""
    try:
        module("algorithms")
    except ModuleNotFoundError as error:
        raise InputError(
            f"The host {NAME} needs {error.name}: pip install 'domainbed-domainfusion[domainbed]'."
        ) from error


def __getattr__(name: str) -> ModuleType:
    if name.startswith("__"):
        raise AttributeError(name)
    return module(name)
