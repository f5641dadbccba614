"""`domainfusion generate`: an image folder of generated images, from a run's saved rounds or from your own images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import pixels
from ..diffusion.source import resolve_source
from ..digests import files_digest
from ..errors import InputError
from ..generated.dataset import candidate_seeds
from ..generated.generation import Generation, Judge
from ..generated.identity import model_identity
from ..generated.saved_rounds import SEEDS, SavedRun
from ..hosting import checks, host
from ..hosting import hparams as table
from ..hosting.hparam_effects import of_a_generated_image
from ..seeding import seed_of
from .chosen_images import open_folders, read_stored
from .generated_folder import GeneratedFolder, folder_names, png_names
from .trained_model import TrainedModel

#: Columns of the provenance that record an hparam under another name; see `Hparam.recorded_as`.
RECORDED = ("model", "revision", "prompt")
#: The hparams of line 10 if there is no θ: content is chosen by its similarity to the original alone.
WITHOUT_CLASSIFIER = {"content_weight": 1.0, "content_feature": "content"}


def generate_from_run(job_folder: Path, output: Path, number: int | None = None) -> None:
    """Write a run's generate-dataset after round `number` to the folder `output`. Default: the last saved round.

    Raises InputError if the run did not save this round, or if a part of it is damaged.
    """
    run = SavedRun.open(job_folder)
    number = number or max(run.rounds)
    if number not in run.rounds:
        raise InputError(
            f"{job_folder} has saved round {', '.join(map(str, sorted(run.rounds)))}, not {number}: give "
            "--rounds one of them."
        )
    values, folder = run.identity["hparams"], GeneratedFolder(output)
    run_seed = run.identity["arguments"]["seed"]
    candidates = values["candidates"] if values["sampling_strategy"] else 1
    settings = settings_of(values, run.identity["ldm"])
    classes, environments = folder_names(run.sources["classes"]), run.sources["environments"]
    names = dict(zip(environments, folder_names(environment["name"] for environment in environments.values())))
    files = {key: _png_names_of(environment["files"]) for key, environment in environments.items()}
    with tqdm(total=run.rounds[number]["images"], desc=f"round {number}", unit="image", disable=None) as progress:
        for part in run.parts(number):
            keys = zip(part["environment"].tolist(), part["index"].tolist())
            choices = zip(part["label"].tolist(), part["content"].tolist(), part["style"].tolist())
            shared = part[SEEDS].tolist() if SEEDS in part else [None] * len(part["images"])
            for (environment, index), (label, content, style), image, seeds in zip(
                keys, choices, part["images"], shared
            ):
                key = str(environment)
                row = {
                    "file": f"{names[key]}/{classes[label]}/{files[key][str(index)]}",
                    "source": environments[key]["files"][str(index)],
                    "environment": names[key],
                    "class": classes[label],
                    "prompt": run.sources["prompts"][label],
                    "round": number,
                    "content": content,
                    "style": style,
                    "run_seed": run_seed,
                    "seeds": seeds or candidate_seeds(run_seed, environment, index, number, candidates),
                    **settings,
                }
                if not folder.holds(row):
                    folder.write(row, image)
                progress.update()
    folder.finish()


def generate_from_folder(
    data: Path, output: Path, given: dict[str, Any], classifier: Path | None = None, rounds: int = 1, seed: int = 0
) -> None:
    """Generate from every image of data/environment/class/image, without training: Algorithm 1, lines 7 to 12.

    Args:
        given: hparams that replace the defaults of DomainFusion's table.
        classifier: a model.pkl with θ of line 10. Without it content is chosen by its similarity to the original alone
            (WITHOUT_CLASSIFIER).
        rounds: the number of rounds. Each round starts from the images of the round before.
        seed: each candidate is seeded by (seed, the image's path in `data`, round, candidate).

    An interrupted call can be repeated: images that are already written are kept. Raises InputError for bad input.
    """
    opened = open_folders(data)
    environments, folders = list(opened), list(opened.values())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generation, labels = _generation(given, folders[0].classes, classifier, device)
    values, folder = generation.hparams, GeneratedFolder(output)
    settings = settings_of(values, model_identity(values))
    settings["classifier_sha256"] = None if classifier is None else _digest(TrainedModel.read(classifier).path)

    def row_of(environment: str, source: str, file: str, index: int) -> dict[str, Any]:
        return {
            "file": file,
            "source": source,
            "environment": environment,
            "class": folders[0].classes[index],
            "prompt": generation.prompts[labels[index]],
            "round": rounds,
            "content": None,
            "style": None,
            "run_seed": seed,
            "seeds": _candidate_seeds(seed, source, rounds, generation.candidates),
            **settings,
        }

    rows = [row_of(*image) for image in _list_images(data, environments, folders)]
    with tqdm(total=len(rows), desc="generating", unit="image", disable=None) as progress:
        for start in range(0, len(rows), values["generation_batch"]):
            batch = rows[start : start + values["generation_batch"]]  # the same batches also after an interruption
            missing = [not folder.holds(row) for row in batch]
            if any(missing):
                y = torch.tensor([labels[folders[0].class_to_idx[row["class"]]] for row in batch])
                _generate_batch(generation, data, batch, y, rounds, seed, missing, folder)
            progress.update(len(batch))
    folder.finish()


def settings_of(values: dict[str, Any], ldm: dict[str, Any]) -> dict[str, Any]:
    """The provenance that all images share: the diffusion model, and the hparams that change a generated image."""
    settings = of_a_generated_image(values, RECORDED)
    return {"model": ldm["name"], "revision": ldm["revision"], "model_sha256": ldm["sha256"], **settings}


def _generate_batch(
    generation: Generation,
    data: Path,
    batch: list[dict],
    y: torch.Tensor,
    rounds: int,
    seed: int,
    missing: list[bool],
    folder: GeneratedFolder,
) -> None:
    size = generation.hparams["image_size"]
    images = read_stored([data / row["source"] for row in batch], size)
    for number in range(1, rounds + 1):
        seeds = [_candidate_seeds(seed, row["source"], number, generation.candidates) for row in batch]
        made = generation(pixels.from_store(images), y, seeds)
        images = pixels.to_store(made.images)
    for row, image, content, style, wanted in zip(batch, images, made.content.tolist(), made.style.tolist(), missing):
        if wanted:
            folder.write({**row, "content": content, "style": style}, image)


def _digest(file: Path) -> str:
    return files_digest([file], file)


def _candidate_seeds(seed: int, source: str, number: int, candidates: int) -> list[int]:
    return [seed_of(seed, "generate", source, number, j) for j in range(candidates)]


def _list_images(data: Path, environments: list[str], folders: list) -> Iterator[tuple[str, str, str, int]]:
    """For every image (environment, its path in `data`, path of its PNG in the output, index of the class folder)."""
    for environment, folder in zip(environments, folders):
        sources = [Path(path).relative_to(data).as_posix() for path, _ in folder.samples]
        for source, file, (_, index) in zip(sources, png_names(sources), folder.samples):
            yield environment, source, file, index


def _png_names_of(sources: dict[str, str]) -> dict[str, str]:
    """index → the PNG's name in its class folder. A source is domain/class/image or domain/index."""
    inside = {index: "/".join(Path(source).parts[2:]) or Path(source).name for index, source in sources.items()}
    return dict(zip(inside, png_names(list(inside.values()))))


def _generation(
    given: dict[str, Any], classes: list[str], classifier: Path | None, device: torch.device
) -> tuple[Generation, list[int]]:
    """Lines 7 to 12 with φ and with the trained θ (if a classifier is given), and the label of each class folder."""
    from ..diffusion.candidates import CandidateSampler  # here, because diffusers takes seconds to import
    from ..diffusion.prompted import PromptedModel

    names = checks.prompt_names_of_folders(given.get("class_names"), classes)
    values = {**host.hparams_registry.default_hparams("DomainFusion", "PACS"), **given}
    judge, labels = None, list(range(len(classes)))
    if classifier is None:
        values = {**values, **_choice_without_classifier(given)}
    else:
        trained = TrainedModel.read(classifier)
        labels = _labels_of_folders(trained, classes)
        names = [name for _, name in sorted(zip(labels, names))]
        judge = Judge.of(trained.algorithm(device, trained.evaluation_transform(), names), trained.pixel_range())
    values["class_names"] = names
    table.check_values(values)
    resolve_source(values["ldm"], values["ldm_revision"], values["ldm_decoder"], values["scheduler"])
    model = PromptedModel.load(values, names, device)
    return Generation(CandidateSampler.of(model, values), judge, values), labels


def _choice_without_classifier(given: dict[str, Any]) -> dict[str, Any]:
    """The hparams of line 10 without θ. Raises InputError if a given hparam needs θ."""
    if given.get("sampling_strategy") is False:
        return {}
    for name, value in WITHOUT_CLASSIFIER.items():
        if given.get(name, value) != value:
            raise InputError(
                f"The hparam {name} {given[name]!r} needs a classifier's judgement: give --classifier a "
                f"model.pkl, or leave {name} at {json.dumps(value)}."
            )
    print(
        "No classifier: content is chosen by its likeness to the original alone "
        f"({', '.join(f'{name} {value}' for name, value in WITHOUT_CLASSIFIER.items())})."
    )
    return WITHOUT_CLASSIFIER


def _labels_of_folders(trained: TrainedModel, classes: list[str]) -> list[int]:
    """The classifier's label of each class folder: by class name, or in sorted order if the classifier has no names.

    The second case prints a line. Raises InputError if the classes differ.
    """
    names = trained.class_names()
    if len(classes) != trained.num_classes or (
        names and sorted(map(_lower_case, names)) != sorted(map(_lower_case, classes))
    ):
        raise InputError(
            f"{trained.path} was trained on {trained.num_classes} classes "
            f"({', '.join(names) if names else 'without names'}), but the folder has {len(classes)} "
            f"({', '.join(classes)}): give a classifier of the same classes."
        )
    if names is None:
        print(f"{trained.path} has no class names: its labels are taken to be the class folders in sorted order.")
        return list(range(len(classes)))
    return [list(map(_lower_case, names)).index(_lower_case(name)) for name in classes]


def _lower_case(name: str) -> str:
    return name.replace("_", " ").lower()
