"""`domainfusion data sheet`: a picture of a dataset for a paper, with what a run generated from its images."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from textwrap import wrap

import torch

from ..data.findings import benchmark_of, folder_of
from ..data.layout import Layout, read_layout
from ..data.samples import choose, square
from ..errors import InputError, unknown_name
from ..files import write_atomically
from ..generated.saved_rounds import SavedRun
from .figures.drawing import LABEL, WIDTH, PictureRow, draw, save
from .pictures import spread

CLASSES, MOST_ROWS = 8, 36  # columns by default; rows in which one can still see something
SIDE = 224  # pixels a side of an original; a generated image keeps its own
LETTER = 0.066  # inches that a letter of a column's head takes, about


class GeneratedImages:
    """The images of a run's last saved round, found by the file that each was made from.

    Raises InputError if the run saved none, or ran on another dataset than `name`.
    """

    def __init__(self, job_folder: Path, name: str):
        self.run = SavedRun.open(job_folder)
        self.round = max(self.run.rounds)
        of = self.run.identity["arguments"]["dataset"]
        if of != name:
            raise InputError(f"{job_folder} is a run on {of}: give a job on {name}, or the name {of}.")
        self.environments = {each["name"] for each in self.run.sources["environments"].values()}
        self.files = {
            file: (int(environment), int(index))
            for environment, each in self.run.sources["environments"].items()
            for index, file in each["files"].items()
        }

    def of(self, files: Sequence[str]) -> dict[str, torch.Tensor]:
        """The generated image, (3, S, S) uint8, of each of these files that has one."""
        wanted = {self.files[file]: file for file in files if file in self.files}
        found = {}
        for part in self.run.parts(self.round):
            keys = zip(part["environment"].tolist(), part["index"].tolist())
            for key, image in zip(keys, part["images"]):
                if key in wanted:
                    found[wanted[key]] = image.clone()
        return found


def write_data_sheet(
    name: str,
    data_dir: Path,
    output: Path,
    images: int = 2,
    classes: Sequence[str] | None = None,
    job_folder: Path | None = None,
) -> Path:
    """Write a PNG: a block of rows for each environment, a column for each class, `images` images in each.

    classes: names of class folders; default: at most 8, evenly spread. job_folder: a DomainFusion job that saved its
    images; each original that it used stands above what its last round made of it. Raises InputError for bad input.
    """
    if output.suffix != ".png":
        raise InputError(f"--output {output} is not the name of a picture: give one that ends in .png.")
    root, _ = folder_of(name, data_dir)
    if not root.is_dir():
        raise InputError(f"There is no dataset folder {root}: give the folder above it as --data_dir.")
    benchmark = benchmark_of(name)
    layout = read_layout(root, benchmark.groups if benchmark else None)
    for each in classes or ():
        if each not in layout.classes:
            raise unknown_name("class", each, layout.classes)
    shown = list(classes or spread(layout.classes, CLASSES))
    if not shown:
        raise InputError(f"{root} has no images in environment/class: `domainfusion data check` says what it has.")
    generated = None if job_folder is None else GeneratedImages(job_folder, name)
    rows = len(layout.environments) + (len(generated.environments) if generated else 0)  # for one image of each class
    if not 1 <= images <= MOST_ROWS // max(1, rows):
        raise InputError(f"--images is {images}, but a page takes 1 to {MOST_ROWS // max(1, rows)} of this dataset.")
    if generated and not any((root / file).exists() for file in generated.files):
        raise InputError(f"{job_folder} used other images than those in {root}: give the --data_dir that the run had.")
    letters = max(4, int((WIDTH - LABEL) / len(shown) / LETTER))
    heads = ["\n".join(wrap(each.replace("_", " "), letters)[:2]) for each in shown]
    groups = list(_groups(layout, shown, images, generated))
    write_atomically(output, partial(save, draw(heads, groups, 0)))
    return output


def _groups(
    layout: Layout, classes: Sequence[str], images: int, generated: GeneratedImages | None
) -> Iterator[list[PictureRow]]:
    """The rows of each environment. An original that the run used comes before one that it did not use."""
    for environment in layout.environments:
        columns = [_chosen(layout, environment, name, images, generated) for name in classes]
        files = [path.relative_to(layout.root).as_posix() for column in columns for path in column]
        made = generated.of(files) if generated and environment in generated.environments else None
        rows = []
        for number in range(images):
            paths = [column[number] if number < len(column) else None for column in columns]
            lines = [environment.replace("_", " ")] if number == 0 else [""]
            if generated:
                lines.append("original" if made is not None else "left out")
            rows.append(PictureRow(tuple(lines), [None if path is None else _original(path) for path in paths]))
            if generated and made is not None:
                names = [None if path is None else path.relative_to(layout.root).as_posix() for path in paths]
                label = ("", "generated", f"in round {generated.round}")
                rows.append(PictureRow(label, [None if file is None else made.get(file) for file in names]))
        yield rows


def _chosen(layout: Layout, environment: str, name: str, images: int, generated: GeneratedImages | None) -> list[Path]:
    every = choose(layout, environment, name, layout.count(environment))
    if generated:
        every.sort(key=lambda path: path.relative_to(layout.root).as_posix() not in generated.files)
    return every[:images]


def _original(path: Path) -> torch.Tensor | None:
    pixels = square(path, SIDE)
    return None if pixels is None else torch.from_numpy(pixels).permute(2, 0, 1)
