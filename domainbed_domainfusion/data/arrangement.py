"""From what an archive holds to environment/class/image."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from .transfer import SourceFailed

#: What TerraIncognita is of the Caltech Camera Traps, by DomainBed.
LOCATIONS = ("38", "43", "46", "100")
ANIMALS = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")


def find_environments(folder: Path, environments: int) -> Path:
    """The first folder, from above, that holds as many folders as there are environments, with classes in each.

    What macOS adds to archives is deleted before. Raises SourceFailed if there is no such folder.
    """
    for waste in list(folder.rglob("__MACOSX")):
        shutil.rmtree(waste)
    level = [folder]
    while level:
        for place in level:
            inside = list(_folders(place))
            if len(inside) == environments and all(len(list(_folders(each))) > 1 for each in inside):
                return place
        level = [inner for place in level for inner in _folders(place)]
    raise SourceFailed(f"its content is not the benchmark's: no folder has {environments} environments with classes.")


def keep_listed(folder: Path, lists: Sequence[Path]) -> None:
    """Delete every file that no list names. A line of a list is a path below `folder`, a space and a label.

    DomainNet's cleaned version is published as such lists, beside archives that also hold the duplicates.
    """
    named = {line.rsplit(" ", 1)[0] for file in lists for line in file.read_text(encoding="utf-8").splitlines()}
    for path in list(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in named:
            path.unlink()


def sort_camera_traps(folder: Path, lists: Sequence[Path]) -> None:
    """Caltech Camera Traps, as published in COCO's format, to location_L/animal/image in `folder`/terra_incognita.

    An image with two kinds of animals is in both classes. Raises SourceFailed if a file is not as expected.
    """
    try:
        for annotations in sorted((folder / "eccv_18_annotation_files").glob("*.json")):
            content = json.loads(annotations.read_text(encoding="utf-8"))
            kinds = {category["id"]: category["name"] for category in content["categories"]}
            animals = defaultdict(set)
            for annotation in content["annotations"]:
                animals[annotation["image_id"]].add(kinds[annotation["category_id"]])
            for image in content["images"]:
                if str(image["location"]) in LOCATIONS:
                    for animal in animals[image["id"]].intersection(ANIMALS):
                        place = folder / "terra_incognita" / f"location_{image['location']}" / animal
                        place.mkdir(parents=True, exist_ok=True)
                        name = Path(image["file_name"]).name
                        shutil.copyfile(folder / "eccv_18_all_images_sm" / name, place / name)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise SourceFailed(f"its content is not the camera traps' ({error!r}).") from error


def _folders(place: Path) -> Iterator[Path]:
    return (path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith("."))
