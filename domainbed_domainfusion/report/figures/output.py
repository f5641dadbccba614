"""Draws the supplement's figures of one run and writes them: PNG files, `figures.json` and `figures.html`."""

import json
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ...errors import InputError
from ...files import write_atomically
from ...hosting import host
from .run import read_run
from .written import FOLDER, INDEX

PAGE = "figures.html"
DRAWS = 32


def write_figures(
    folder: Path, output: Path | None = None, draws: int = DRAWS, ldm: str | None = None, data_dir: str | None = None
) -> list[Path]:
    """Draw the three figures of a job folder; return the files written, the page last.

    output: default `generated/figures` in the job folder, where `report` looks for them; draws: T, draws of (t, ε) per
    noise image; ldm, data_dir: replace the run's own if these have moved. Raises InputError, before anything is
    written, for a folder without a gallery and for an LDM or a model.pkl that cannot be used.
    """
    if draws < 1:
        raise InputError(f"--draws is {draws}, but must be a whole number from 1 on.")
    run = read_run(folder)
    host.check_imports()
    output = output or folder / "generated" / FOLDER
    from ..page import figures_html
    from .drawing import save  # imported here, because diffusers and matplotlib take seconds to import
    from .noise import NoiseImages
    from .supplement import note, supplement_figures

    noises = NoiseImages(run, draws, ldm, data_dir)
    figures = supplement_figures(noises)
    for drawn, figure in figures:
        write_atomically(output / drawn.file, partial(save, figure))
    command = shlex.join(
        ["domainfusion", "figures", "--run", str(folder), "--draws", str(draws), *(["--ldm", ldm] if ldm else [])]
    )
    index = {
        "command": command,
        "ldm": noises.hparams["ldm"],
        "draws": draws,
        "note": note(noises),
        "figures": [asdict(drawn) for drawn, _ in figures],
    }
    write_atomically(output / INDEX, json.dumps(index, indent=1))
    write_atomically(output / PAGE, figures_html(run.name, output))
    return [*(output / drawn.file for drawn, _ in figures), output / INDEX, output / PAGE]
