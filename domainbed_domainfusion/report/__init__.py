"""One page from any sweep folder: its accuracies, the runs behind them, and the published numbers beside them.

`jobs` and `results` read the folder, `content` gathers what is shown, `page` and `tables` write it. `figures/` draws
the supplement's figures of one run; `data_page` and `data_sheet` show a dataset. May import: `runs`, `data`,
`generated`, `diffusion`, `hosting` and the ground floor.
"""

from pathlib import Path

from ..errors import InputError
from ..files import write_atomically
from ..hosting import host
from .jobs import read_sweep


def write(input_dir: Path, output: Path) -> list[Path]:
    """Write the page of a sweep folder to `output`, and its tables beside it as .md and .tex; return the three paths.

    The sweep folder is only read. The page lists damaged lines, unfinished jobs and missing jobs. Raises InputError if
    there is no sweep, if `output` is a folder or ends in .md or .tex, or if the host's own imports are not installed.
    """
    if output.is_dir() or output.suffix in (".md", ".tex"):
        raise InputError(f"--output {output} is not the name of a page: give one that ends in .html.")
    sweep = read_sweep(input_dir)
    host.check_imports()
    from .content import content_of
    from .page import html
    from .tables import latex, markdown

    content = content_of(sweep)
    paths = [output, output.with_suffix(".md"), output.with_suffix(".tex")]
    for path, text in zip(paths, (html(content), markdown(content), latex(content))):
        write_atomically(path, text)
    return paths
