"""Image folders of your own as datasets of the host, described by a file and not by an edit of the host.

`domainfusion data add NAME FOLDER` writes data_dir/NAME/dataset.json. Whatever then gets that --data_dir knows the
dataset NAME: train, sweep, estimate. A run leaves a copy of the file in its job folder. So whatever gets the
--input_dir of a sweep knows NAME too, also where the data are not: collect_results, report, compare, keep.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torchvision import transforms

from ..errors import InputError
from ..files import write_atomically
from ..hosting import checks, context, host

FILE = "dataset.json"


@dataclass(frozen=True)
class Description:
    """The content of a dataset.json."""

    name: str
    folder: str  # environment/class/image; relative to the file, or absolute
    environments: list[str]  # short names, in sorted order of the environments' folders
    class_names: list[str]  # for prompts, in sorted order of the class folders
    image_size: int = 224  # pixels a side of the classifier's input
    steps: int = 5001
    checkpoint_freq: int = 300
    workers: int = 8  # worker processes per data loader


def add(description: Description, data_dir: Path) -> Path:
    """Check the folder, write the file and return its path.

    Raises InputError if the description is not right (`check_description`), or if the folder cannot be used
    (`checks.check_image_folder`); nothing is written then.
    """
    folder = data_dir / description.name
    root = _root(folder, description)
    check_description(description)
    checks.check_image_folder(str(root), description.environments)
    classes = sorted(entry.name for entry in next(_folders(root)).iterdir() if entry.is_dir())
    if len(description.class_names) != len(classes):
        raise InputError(
            f"There are {len(description.class_names)} class names, but {root} has {len(classes)} classes "
            f"({', '.join(classes)}): give one for each, in this order."
        )
    write_atomically(folder / FILE, json.dumps(asdict(description), indent=2) + "\n")
    return folder / FILE


def check_description(description: Description) -> None:
    """Raise InputError for a name that `check_name` refuses, a number out of range, and equal names."""
    check_name(description.name)
    for number, low in (("image_size", 8), ("steps", 1), ("checkpoint_freq", 1), ("workers", 0)):
        if getattr(description, number) < low:
            raise InputError(f"The dataset's {number} is {getattr(description, number)}: give {low} or more.")
    for what, names in (("environments", description.environments), ("class names", description.class_names)):
        if twice := sorted({each for each in names if names.count(each) > 1}):
            raise InputError(
                f"The {what} {', '.join(names)} have {', '.join(twice)} twice: tables could not tell them."
            )


def check_name(name: str) -> None:
    """Raise InputError for a dataset's name that is no Python identifier or taken by the host."""
    known = getattr(host.datasets, name, None)
    if not name.isidentifier() or (known is not None and not getattr(known, "DESCRIBED", False)):
        raise InputError(
            f"{name!r} cannot name a dataset, because the host uses it or it is no identifier: choose another."
        )


def describe(name: str, folder: Path, data_dir: Path, **given: Any) -> Description:
    """A description of `folder` with the names of its folders, where `given` (not None) does not say otherwise.

    Raises InputError if the folder has no environments.
    """
    environments = [entry.name for entry in _folders(folder)] if folder.is_dir() else []
    if not environments:
        raise InputError(f"{folder} holds no folder: the layout is environment/class/image.")
    classes = sorted(entry.name.replace("_", " ") for entry in (folder / environments[0]).iterdir() if entry.is_dir())
    inside = folder.resolve().is_relative_to(data_dir.resolve())
    place = Path("..", folder.resolve().relative_to(data_dir.resolve())) if inside else folder.resolve()
    values: dict[str, Any] = {"environments": environments, "class_names": classes}
    values.update({key: value for key, value in given.items() if value is not None})
    return Description(name, place.as_posix(), **values)


def described_folder(name: str, data_dir: Path) -> Path:
    """The folder environment/class/image of a dataset that `add` has described in data_dir. Raises InputError."""
    return _root(data_dir / name, _read(data_dir / name / FILE))


def leave_description(dataset: Any) -> None:
    """Write the description of a dataset that the train script has built, if it is one of ours, into its job folder."""
    description, job = getattr(type(dataset), "DESCRIBED", None), context.current().output_dir
    if description is not None and job is not None:
        write_atomically(Path(job) / FILE, json.dumps(asdict(description), indent=2) + "\n")


def register_described(arguments: Sequence[str] | None = None) -> None:
    """Add to the host every dataset that is described in a folder of this process's command line. Idempotent.

    The folders: --data_dir, the job folders in --input_dir, and the data folder of the first of these jobs. Raises
    InputError for a dataset.json that cannot be understood.
    """
    for folder in _folders_of_descriptions(sys.argv[1:] if arguments is None else arguments):
        for file in sorted(folder.glob(f"*/{FILE}")):
            description = _read(file)
            if not hasattr(host.datasets, description.name):
                setattr(host.datasets, description.name, _dataset_class(description, file.parent))
                host.datasets.DATASETS.append(description.name)


def _read(file: Path) -> Description:
    try:
        description = Description(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{file} describes no dataset ({error}): write it again with `domainfusion data add`."
        ) from error
    return description


def _folders_of_descriptions(arguments: Sequence[str]) -> Iterator[Path]:
    """Folders with NAME/dataset.json or JOB/dataset.json: see `register_described`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_dir")
    parser.add_argument("--input_dir")
    given = parser.parse_known_args(list(arguments))[0]
    if given.data_dir:
        yield Path(given.data_dir)
    if given.input_dir:
        yield Path(given.input_dir)
    for results in sorted(Path(given.input_dir).glob("*/results.jsonl"))[:1] if given.input_dir else ():
        try:
            with open(results, encoding="utf-8") as file:
                yield Path(json.loads(file.readline())["args"]["data_dir"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the report names damaged lines


def _root(place: Path, description: Description) -> Path:
    """The dataset's folder, for a description that lies in `place`. By the names alone: `place` may not exist yet."""
    return Path(os.path.normpath(place / description.folder))


def _folders(root: Path) -> Iterator[Path]:
    yield from sorted(entry for entry in root.iterdir() if entry.is_dir())


def _dataset_class(description: Description, place: Path) -> type:
    described = replace(description, folder=os.path.abspath(_root(place, description)))
    base = host.datasets.MultipleEnvironmentImageFolder

    class Described(base):  # type: ignore[misc, valid-type]  # the host's class is known at run time only
        """The host's own image-folder dataset, with its transforms at the size that the description has."""

        DESCRIBED = described
        ENVIRONMENTS = description.environments
        CLASS_NAMES = description.class_names
        N_STEPS, CHECKPOINT_FREQ = description.steps, description.checkpoint_freq
        N_WORKERS = description.workers
        INPUT_SHAPE = (3, description.image_size, description.image_size)

        def __init__(self, root: str, test_envs: list[int], hparams: dict[str, Any]):
            self.dir = str(_root(place, description))
            super().__init__(self.dir, test_envs, hparams["data_augmentation"], hparams)
            self.input_shape = self.INPUT_SHAPE
            for environment in self.datasets:
                environment.transform = _at_size(environment.transform, description.image_size)

    Described.__name__ = Described.__qualname__ = description.name
    return Described


def _at_size(transform: Any, size: int) -> Any:
    """A copy of the host's transform with another size of its result."""
    changed = copy.deepcopy(transform)
    for step in changed.transforms:
        if isinstance(step, (transforms.Resize, transforms.RandomResizedCrop)):
            step.size = (size, size)
    return changed
