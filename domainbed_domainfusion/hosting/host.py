"""Which host runs us: `domainbed` if it can be imported, else the embedded `minibed`. No other module decides this.

`host.algorithms`, `host.datasets`, `host.lib.misc` … are the host's own modules. They are looked up at their first use:
the host imports us at the end of its `algorithms`, when its other modules may not be imported yet.
"""

import importlib
import importlib.util
import sys
from typing import Any

from ..errors import InputError

EMBEDDED = "domainbed_domainfusion.minibed"


def _find() -> str:
    """The host whose import has already begun, because it runs us; else DomainBed if it is installed; else minibed."""
    for name in ("domainbed", EMBEDDED):
        if f"{name}.algorithms" in sys.modules:
            return name
    return "domainbed" if importlib.util.find_spec("domainbed") else EMBEDDED


NAME = _find()


def module(name: str) -> Any:
    """The host's module of that name, e.g. `module("lib.misc")`. Its type is unknown until it is looked up."""
    return importlib.import_module(f"{NAME}.{name}")


def check_imports() -> None:
    """Import the host's algorithms. Raises InputError if a package that the host needs is not installed."""
    try:
        module("algorithms")
    except ModuleNotFoundError as error:
        raise InputError(
            f"The host {NAME} needs {error.name}: pip install 'domainbed-domainfusion[domainbed]'."
        ) from error


def our_algorithms() -> list[str]:
    """The plugin's algorithms in the host's registry, in its order: what `register` has added there."""
    algorithms, package = module("algorithms"), f"{__package__.rpartition('.')[0]}.algorithms."
    return [name for name in algorithms.ALGORITHMS if getattr(algorithms, name).__module__.startswith(package)]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return module(name)
