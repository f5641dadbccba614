"""Checks of the user's input before any training: command line, dataset folders, splits."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import context, host, hparams, readable_images


def check_command_line() -> None:
    """Check `--hparams` if this process runs the host's train or sweep. The host itself accepts any key silently."""
    if context.running_script() not in ("train", "sweep"):
        return
    if context.running_script() == "sweep":
        _check_pairs()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hparams", default=None)
    text = parser.parse_known_args(sys.argv[1:])[0].hparams
    if text is not None:
        check_hparams_text(text)


def _check_pairs() -> None:
    """Raise InputError if the sweep would leave two environments out of a dataset that has two."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--datasets", nargs="+", default=[])
    parser.add_argument("--single_test_envs", action="store_true")
    given = parser.parse_known_args(sys.argv[1:])[0]
    for name in given.datasets if not given.single_test_envs else ():
        if len(getattr(getattr(host.datasets, name, None), "ENVIRONMENTS", None) or "too many") < 3:
            raise InputError(f"{name} has two environments, and one must remain to train on: add --single_test_envs.")


def check_test_environments(dataset: Any) -> None:
    """Raise InputError if `--test_envs` of this train run leaves no environment to train on, or names one too many.

    The host would end without a sentence in the first case, and train on all environments in the second.
    """
    names = getattr(dataset, "ENVIRONMENTS", None)
    if context.running_script() != "train" or not names:
        return
    tests = context.train_arguments().test_envs
    known = (
        f"{type(dataset).__name__} has the environments {', '.join(f'{i} ({name})' for i, name in enumerate(names))}"
    )
    if not set(tests) <= set(range(len(names))):
        raise InputError(f"--test_envs is {' '.join(map(str, tests))}, but {known}: give their numbers.")
    if len(set(tests)) == len(names):
        raise InputError(
            f"--test_envs is {' '.join(map(str, tests))}, and {known}: leave one of them out, to train on it."
        )


def check_attached() -> None:
    """Raise InputError if the host is a DomainBed checkout that is not attached."""
    if host.NAME != host.EMBEDDED and "DomainFusion" not in host.algorithms.ALGORITHMS:
        raise InputError(
            "This DomainBed checkout does not know DomainFusion yet: run `domainfusion attach .` in it "
            "once, or work from another folder, on the embedded host."
        )


def check_hparams_text(text: str) -> dict[str, Any]:
    """Parse `--hparams`. Raises InputError for broken JSON, for keys that no algorithm knows and for bad values."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets in thousands
        raise InputError(
            f"--hparams is not JSON ({error}): write it like --hparams '{{\"batch_size\": 16}}', with "
            "double quotes inside and true/false in lower case."
        ) from error
    if not isinstance(values, dict):
        raise InputError("--hparams must be a JSON object, like '{\"batch_size\": 16}'.")
    hparams.check_names(list(values), known_names())
    hparams.check_values(values)
    return values


def known_names() -> set[str]:
    """The hparams of all algorithms of the host on all datasets. A sweep passes one --hparams to every job."""
    names = set(hparams.ROWS)
    for algorithm in host.algorithms.ALGORITHMS:
        for dataset in ("RotatedMNIST", "PACS"):
            names |= set(host.hparams_registry.default_hparams(algorithm, dataset))
    return names


def check_batch(split: Sequence, batch_size: int, weights: Any | None) -> None:
    """Raise InputError if the split is smaller than a minibatch: the host's loader would wait for one for ever.

    weights: the host's sampling weights. With weights the loader draws with replacement and always fills a minibatch.
    """
    if weights is None and len(split) < batch_size:
        raise InputError(
            f"A training environment has {len(split)} images in its in-split, fewer than batch_size "
            f"{batch_size}: lower it, for example --hparams '{{\"batch_size\": {max(1, len(split))}}}'."
        )


def check_image_folder(root: str, environments: Sequence[str] | None) -> None:
    """Check `root/<environment>/<class>/<image>`; raise InputError that names the first thing wrong.

    environments: the names in the dataset's class; None leaves their number unchecked. Whether every image can be
    decoded is checked once per folder, see `readable_images`.
    """
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else None
    if found is None or (not found and environments is None):
        raise InputError(
            f"There is no dataset folder {root}: give the folder above it as --data_dir (DomainBed's "
            "scripts.download fetches the datasets)."
        )
    if environments is not None and len(found) != len(environments):
        raise InputError(
            f"{root} must hold one folder per environment ({len(environments)}: "
            f"{', '.join(environments)}), but holds {len(found)} ({', '.join(found) or 'none'}): remove "
            "what does not belong there or add what is missing."
        )
    classes = {name: _classes(Path(root, name)) for name in found}
    expected = classes[found[0]]
    if len(expected) < 2:
        raise InputError(
            f"{Path(root, found[0])} holds {len(expected)} class folder(s), but a classifier needs two "
            "or more: the layout is environment/class/image."
        )
    for name, names in classes.items():
        if names != expected:
            odd = sorted(set(names) ^ set(expected))
            raise InputError(
                f"The environments {found[0]} and {name} in {root} differ in their classes "
                f"({', '.join(odd)}): labels would not agree; give both the same non-empty class folders."
            )
    readable_images.check_readable(Path(root))


def prompt_names_of_folders(class_names: list[str] | None, folders: Sequence[str]) -> list[str]:
    """The names for prompts, one per class folder: the hparam `class_names`, else the folders' with spaces.

    Raises InputError if there is not one name per folder.
    """
    names = class_names or [name.replace("_", " ") for name in folders]
    if len(names) != len(folders):
        raise InputError(
            f"The hparam class_names has {len(names)} names, but there are {len(folders)} class "
            "folders: give one name per class, in sorted order of the folders."
        )
    return names


def _classes(environment: Path) -> list[str]:
    """Class folders in label order. Raises InputError if one holds no image."""
    names = sorted(entry.name for entry in os.scandir(environment) if entry.is_dir())
    for name in names:
        if not readable_images.has_image(environment / name):
            raise InputError(f"The class folder {environment / name} holds no image: remove it or fill it.")
    return names
