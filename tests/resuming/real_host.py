"""DomainBed in place of minibed, for a process that has not imported a host yet."""

import os
import shutil
import sys
from pathlib import Path


def use_checkout(folder: Path) -> None:
    """If DOMAINBED_DIR names a checkout: attach a copy of it in `folder`, and run in that host from here on."""
    source = os.environ.get("DOMAINBED_DIR")
    if not source:
        return
    from domainbed_domainfusion.hosting import attach

    copy = folder / "DomainBed"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    attach.attach(copy)
    sys.path.insert(0, str(copy))
    os.environ["DOMAINBED_DIR"] = str(copy)
    for name in [name for name in sys.modules if name.startswith("domainbed_domainfusion")]:
        del sys.modules[name]  # which host runs us was decided at the import
