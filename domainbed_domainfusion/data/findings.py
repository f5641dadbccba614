"""`domainfusion data check`: what is wrong with a dataset, before a run meets it."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_name
from ..hosting import host
from .benchmarks import BENCHMARKS, SPAWRIOUS, SPAWRIOUS_LOCATIONS, SPAWRIOUS_SPLITS, Benchmark
from .layout import Layout, differing_in_case_alone, read_layout
from .own_datasets import FILE, described_folder
from .picture import Picture, read_pictures

ERROR, WARNING = "error", "warning"
#: What may be found. An error: a run would stop, or its numbers would not be the benchmark's.
KINDS = {
    "environments": ERROR,
    "classes": ERROR,
    "case": ERROR,
    "empty": ERROR,
    "published-images": ERROR,
    "published-classes": ERROR,
    "unreadable": ERROR,
    "dangling": ERROR,
    "duplicates-environments": ERROR,
    "duplicates-classes": ERROR,
    "duplicates-class": WARNING,
    "mode": WARNING,
    "animated": WARNING,
    "turned": WARNING,
    "ignored": WARNING,
}
SHOWN = 3  # files that a sentence names; the JSON has all


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # a key of KINDS
    sentence: str
    files: tuple[str, ...] = ()  # relative to the dataset's folder

    @property
    def level(self) -> str:
        """ERROR or WARNING."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class Check:
    """A checked dataset."""

    name: str
    layout: Layout
    short_names: tuple[str, ...]  # of the environments, as the host's tables show them
    benchmark: Benchmark | None  # the published sizes, for the five that have them
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        return any(finding.level == ERROR for finding in self.findings)

    def rows(self) -> list[tuple[str, str, int, int | None]]:
        """(environment's folder, short name, images, published images) of each environment."""
        found = list(self.layout.environments)
        fits = len(found) == len(self.short_names)
        published = self.benchmark.images if self.benchmark and fits else (None,) * len(found)
        shorts = self.short_names if fits else ("",) * len(found)
        return [(name, short, self.layout.count(name), number) for name, short, number in zip(found, shorts, published)]

    def text(self) -> str:
        """The table of environments and a line for each finding."""
        lines = [
            f"{self.name} in {self.layout.root}: {len(self.layout.environments)} environments, "
            f"{len(self.layout.classes)} classes, {sum(row[2] for row in self.rows()):,} images"
        ]
        width = max([6, *(len(short) for _, short, _, _ in self.rows())])
        for name, short, images, published in self.rows():
            known = "" if published is None else f" of {published:,}"
            lines.append(f"  {short:>{width}}  {name:<20} {images:>9,}{known}")
        lines += [f"{finding.level}: {finding.sentence}" for finding in self.findings]
        return "\n".join(lines if self.findings else [*lines, "Nothing is wrong with it."])

    def json(self) -> str:
        """Everything, as one JSON object."""
        counts = {
            environment: {name: len(paths) for name, paths in classes.items()}
            for environment, classes in self.layout.environments.items()
        }
        content: dict[str, Any] = {
            "name": self.name,
            "folder": str(self.layout.root),
            "images": counts,
            "published": {row[0]: row[3] for row in self.rows() if row[3] is not None},
            "findings": [{"level": finding.level, **asdict(finding)} for finding in self.findings],
        }
        return json.dumps(content, indent=2)


def check(name: str, data_dir: Path, folder: Path | None = None) -> Check:
    """Check the dataset `name` below the host's `data_dir`. Every image is read; nothing is written.

    folder: where the dataset's environments are, if not in the folder that the host gives it below `data_dir`.
    Raises InputError if the host does not know the dataset as an image folder, or if its folder does not exist.
    """
    root, short_names = folder_of(name, data_dir)
    benchmark = benchmark_of(name)
    if not (folder or root).is_dir():
        ours = (f"`domainfusion data get {name}`", *benchmark.sources) if benchmark else ()
        sources = " or ".join((*ours, "DomainBed's scripts.download"))
        raise InputError(f"There is no dataset folder {root}: {name} is to be had from {sources}.")
    return check_folder(name, folder or root, short_names, benchmark)


def check_folder(name: str, root: Path, short_names: Sequence[str], benchmark: Benchmark | None = None) -> Check:
    """Check the folder environment/class/image `root`, of whatever dataset. Every image is read."""
    layout = read_layout(root, benchmark.groups if benchmark else None)
    pictures = list(read_pictures([path for _, _, path in layout.images]))
    findings = [*_of_folders(layout, short_names, benchmark), *_of_pictures(layout, pictures)]
    return Check(name, layout, tuple(short_names), benchmark, tuple(sorted(findings, key=lambda found: found.level)))


def benchmark_of(name: str) -> Benchmark | None:
    """What was published of a dataset of the host, None if nothing is known."""
    return SPAWRIOUS if name.startswith("Spawrious") else BENCHMARKS.get(name)


def folder_of(name: str, data_dir: Path) -> tuple[Path, tuple[str, ...]]:
    """The dataset's folder below `data_dir`, and the short names of its environments.

    Raises InputError if the host does not know the dataset as an image folder, and for Spawrious without its splits.
    """
    known = getattr(host.datasets, name, None)
    if known is None:
        raise unknown_name("dataset", name, host.datasets.DATASETS)
    if name.startswith("Spawrious"):
        if not any((data_dir / split).is_dir() for split in SPAWRIOUS_SPLITS):
            raise InputError(
                f"{data_dir} has no folder 0 or 1: DomainBed reads Spawrious from --data_dir itself, so give the "
                f"folder that holds its splits 0 and 1; it is to be had from {SPAWRIOUS.sources[0]}."
            )
        return data_dir, tuple(f"{split}/{place}" for split in SPAWRIOUS_SPLITS for place in SPAWRIOUS_LOCATIONS)
    if name in BENCHMARKS:
        return data_dir / BENCHMARKS[name].folder, tuple(known.ENVIRONMENTS)
    if name == "SVIRO":
        return data_dir / "sviro", tuple(known.ENVIRONMENTS)
    if getattr(known, "DESCRIBED", False):
        return described_folder(name, data_dir), tuple(known.ENVIRONMENTS)
    raise InputError(
        f"{name} is no folder of images: the check knows {', '.join(BENCHMARKS)}, SVIRO, Spawrious, and what "
        "`domainfusion data add` has described."
    )


def _of_folders(layout: Layout, short_names: Sequence[str], benchmark: Benchmark | None) -> Iterator[Finding]:
    found = list(layout.environments)
    if len(found) != len(short_names):
        yield Finding(
            "environments",
            f"There are {len(found)} environments ({', '.join(found) or 'none'}), but the dataset has "
            f"{len(short_names)} ({', '.join(short_names)}): remove what does not belong there, or add what is "
            "missing.",
        )
    yield from _names_that_differ_in_case(found, "environments")
    yield from _names_that_differ_in_case(layout.classes, "classes")
    for environment, classes in layout.environments.items():
        lacking = [name for name in layout.classes if name not in classes]
        if lacking:
            yield Finding(
                "classes",
                f"{environment} lacks the classes {', '.join(lacking)} that other environments have: the labels "
                "would not agree.",
            )
        for name, paths in classes.items():
            if not paths:
                yield Finding("empty", f"{environment}/{name} holds no image: remove it or fill it.")
    if benchmark is not None:
        yield from _counts(layout, benchmark)
    ignored = [path for path in layout.ignored if path.name != FILE]
    if ignored:
        one = "file is not read, because it is no image in a class folder"
        many = "files are not read, because they are no images in a class folder"
        yield _finding(layout, "ignored", ignored, one, many)


def _names_that_differ_in_case(names: Sequence[str], what: str) -> Iterator[Finding]:
    for spellings in differing_in_case_alone(names):
        yield Finding(
            "case",
            f"The {what} {', '.join(spellings)} differ in upper and lower case alone: they are different to the host, "
            "and one and the same on some file systems.",
        )


def _counts(layout: Layout, benchmark: Benchmark) -> Iterator[Finding]:
    if len(layout.classes) != benchmark.classes:
        yield Finding(
            "published-classes",
            f"There are {len(layout.classes)} classes, but the published dataset has {benchmark.classes}.",
        )
    if len(layout.environments) != len(benchmark.images):
        return
    for environment, published in zip(layout.environments, benchmark.images):
        images = layout.count(environment)
        if images != published:
            yield Finding(
                "published-images",
                f"{environment} has {images:,} images, but the published dataset has {published:,}: accuracies on it "
                "are not comparable.",
            )


def _of_pictures(layout: Layout, pictures: Sequence[Picture]) -> Iterator[Finding]:
    def some(kind: str, holds: Callable[[Picture], bool], one: str, many: str) -> Iterator[Finding]:
        paths = [picture.path for picture in pictures if holds(picture)]
        if paths:
            yield _finding(layout, kind, paths, one, many)

    yield from some("dangling", lambda p: p.dangling, "image is a link to nowhere", "images are links to nowhere")
    yield from some(
        "unreadable",
        lambda p: p.broken and not p.dangling,
        "image cannot be read whole",
        "images cannot be read whole",
    )
    for mode in sorted({picture.mode for picture in pictures} - {"", "RGB"}):
        loses = ", and the brightness of 16 bits is cut at 255" if mode.startswith("I") else ""
        yield from some(
            "mode",
            lambda p, mode=mode: p.mode == mode,  # type: ignore[misc]
            f"image is {mode} and not RGB; the host converts it{loses}",
            f"images are {mode} and not RGB; the host converts them{loses}",
        )
    yield from some(
        "animated",
        lambda p: p.frames > 1,
        "image is animated; the host reads its first frame",
        "images are animated; the host reads their first frames",
    )
    yield from some(
        "turned",
        lambda p: p.turned,
        "image has an EXIF rotation, which the host does not apply",
        "images have an EXIF rotation, which the host does not apply",
    )
    yield from _duplicates(layout, pictures)


def _duplicates(layout: Layout, pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Files of equal bytes. In two environments they leak a test domain; in two classes one label is wrong."""
    same: dict[str, list[tuple[str, str, Path]]] = defaultdict(list)
    for (environment, name, path), picture in zip(layout.images, pictures):
        if picture.digest:
            same[picture.digest].append((environment, name, path))
    groups: dict[str, list[list[Path]]] = defaultdict(list)
    for copies in same.values():
        if len(copies) > 1:
            if len({environment for environment, _, _ in copies}) > 1:
                groups["environments"].append([path for _, _, path in copies])
            elif len({name for _, name, _ in copies}) > 1:
                groups["classes"].append([path for _, _, path in copies])
            else:
                groups["class"].append([path for _, _, path in copies])
    for kind, where in (
        ("environments", "in more than one environment: a test domain is seen in training"),
        ("classes", "in more than one class: one of the labels is wrong"),
        ("class", "more than once in one class: a copy can be in the validation split"),
    ):
        if groups[kind]:
            paths = [path for group in groups[kind] for path in group]
            number = len(groups[kind])
            what = f"{number:,} {'image lies' if number == 1 else 'images lie'} {where}"
            yield Finding(f"duplicates-{kind}", f"{what}; {_first(layout, paths)}.", _names(layout, paths))


def _finding(layout: Layout, kind: str, paths: Sequence[Path], one: str, many: str) -> Finding:
    what = f"1 {one}" if len(paths) == 1 else f"{len(paths):,} {many}"
    return Finding(kind, f"{what}; {_first(layout, paths)}.", _names(layout, paths))


def _names(layout: Layout, paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(path.relative_to(layout.root).as_posix() for path in paths)


def _first(layout: Layout, paths: Sequence[Path]) -> str:
    names = _names(layout, paths[:SHOWN])
    return f"the first: {', '.join(names)}" if len(paths) > 1 else names[0]
