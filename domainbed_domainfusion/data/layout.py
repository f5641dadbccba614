"""A folder environment/class/image, listed as the host reads it."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS


@dataclass(frozen=True)
class Layout:
    """The content of a dataset folder. No file has been opened."""

    root: Path
    environments: dict[str, dict[str, list[Path]]]  # environment → class → its images; all sorted
    ignored: list[Path]  # files that the host does not read: no image extension, or in no class folder

    @property
    def images(self) -> Iterator[tuple[str, str, Path]]:
        """(environment, class, path) of every image."""
        for environment, classes in self.environments.items():
            for name, paths in classes.items():
                yield from ((environment, name, path) for path in paths)

    @property
    def classes(self) -> list[str]:
        """The names of all class folders, sorted."""
        return sorted({name for classes in self.environments.values() for name in classes})

    def count(self, environment: str) -> int:
        """The number of images of an environment."""
        return sum(map(len, self.environments[environment].values()))


def read_layout(root: Path, groups: Sequence[str] | None = None) -> Layout:
    """List `root`. Images may lie deeper than the class folder, and links are followed, as torchvision does it.

    groups: folders in `root` that hold the environments, which then are named group/environment.
    """
    places = [root] if groups is None else [root / group for group in groups if (root / group).is_dir()]
    ignored = [path for place in places for path in sorted(place.iterdir()) if not path.is_dir()]
    environments: dict[str, dict[str, list[Path]]] = {}
    for environment in [folder for place in places for folder in _folders(place)]:
        ignored += [path for path in sorted(environment.iterdir()) if not path.is_dir()]
        classes = environments[environment.relative_to(root).as_posix()] = {}
        for folder in _folders(environment):
            files = [Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
            images = {path for path in files if path.name.lower().endswith(IMG_EXTENSIONS)}
            classes[folder.name] = sorted(images)
            ignored += sorted(set(files) - images)
    return Layout(root, environments, ignored)


def _folders(place: Path) -> Iterator[Path]:
    yield from sorted(path for path in place.iterdir() if path.is_dir())


def differing_in_case_alone(names: Iterable[str]) -> list[list[str]]:
    """The groups of names that differ in upper and lower case alone, each sorted; a name that occurs twice is one."""
    same = defaultdict(set)
    for name in names:
        same[name.casefold()].add(name)
    return [sorted(spellings) for spellings in same.values() if len(spellings) > 1]
