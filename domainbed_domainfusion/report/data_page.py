"""The page of `domainfusion data check`: counts, findings, and images of each environment and class."""

import base64
from pathlib import Path

from .. import __version__
from ..data.findings import Check
from ..data.samples import choose, thumbnail
from ..files import write_atomically
from .page import environment_of_templates

IMAGES, SIDE = 3, 64  # of each environment and class; pixels a side
CLASSES = 30  # shown at most, so that a page of DomainNet stays small


def write_data_page(check: Check, path: Path) -> None:
    """Write one self-contained HTML page. Raises InputError if the file cannot be written."""
    classes = check.layout.classes
    page = environment_of_templates().get_template("data_page.html")
    write_atomically(
        path,
        page.render(
            check=check,
            rows=check.rows(),
            classes=classes[:CLASSES],
            left_out=len(classes) - len(classes[:CLASSES]),
            counts=check.layout.environments,
            pictures=lambda environment, name: _pictures(check, environment, name),
            version=__version__,
        )
        + "\n",
    )


def _pictures(check: Check, environment: str, name: str) -> list[str]:
    """Data URIs of some images. One that cannot be read is left out: it stands among the findings."""
    found = (thumbnail(path, SIDE) for path in choose(check.layout, environment, name, IMAGES))
    return [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in found if image is not None]
