"""`domainfusion predict`: class probabilities of images, from a finished run's model.pkl."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from ..errors import InputError
from ..files import write_atomically
from .trained_model import TrainedModel, load_image

BATCH = 64  # the host's evaluation batch, because an algorithm's prediction may depend on the batch


def predict(
    model: Path,
    images: Sequence[Path],
    output: Path | None = None,
    class_names: list[str] | None = None,
    data_dir: str | None = None,
    top: int = 3,
) -> None:
    """Print the `top` most probable classes of each image; write every class's probability to `output` (CSV).

    images: files, and folders that are searched for images. The probabilities are the softmax of the algorithm's
    `predict` in eval mode, after the host's evaluation transform. Only the zero-shot algorithms, and those that ask
    it at test time, load a diffusion model.
    Raises InputError for a model, a class name or an image that cannot be used. If some images cannot be read, the
    others are predicted first.
    """
    trained = TrainedModel.read(model)
    paths = find_images(images)
    names = names_for(trained, class_names, data_dir)
    transform = trained.evaluation_transform(data_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    algorithm = trained.algorithm(device, transform, names)
    predicted: list[tuple[Path, list[float]]] = []
    broken: list[tuple[Path, str]] = []
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    for batch in tqdm(batches, "predicting", unit="batch", disable=None if len(batches) > 1 else True):
        x, read = [], []
        for path in batch:
            try:
                x.append(transform(load_image(path)))
                read.append(path)
            except ValueError as error:
                broken.append((path, str(error)))
        if x:
            with torch.no_grad():
                probabilities = algorithm.predict(torch.stack(x).to(device)).softmax(-1).cpu().tolist()
            predicted += zip(read, probabilities)
    if predicted:
        print(table(predicted, names, top))
        if output:
            write_atomically(output, as_csv(predicted, names))
    if broken:
        path, reason = broken[0]
        raise InputError(
            f"{len(broken)} of {len(paths)} images cannot be read, the first is {path} ({reason}): copy "
            "it again or leave it out."
        )


def find_images(given: Sequence[Path]) -> list[Path]:
    """The given files, and every image in the given folders, in order.

    Raises InputError for a path that does not exist and for a folder without images.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.name.lower().endswith(IMG_EXTENSIONS))
            if not inside:
                raise InputError(f"The folder {path} holds no image ({', '.join(IMG_EXTENSIONS)}).")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"There is no image {path}: give files or folders.")
    return found


def names_for(trained: TrainedModel, given: list[str] | None, data_dir: str | None) -> list[str]:
    """One name per class in label order: the given names, else the run's, else label numbers and a line on stderr.

    Raises InputError if the number of given names is not the number of classes.
    """
    if given and len(given) != trained.num_classes:
        raise InputError(
            f"--class_names has {len(given)} names, but {trained.path} tells {trained.num_classes} "
            "classes apart: give one per class, in label order."
        )
    names = given or trained.class_names(data_dir)
    if names is None:
        print(
            f"The class names of {trained.args['dataset']} are not to be found: classes are shown by label number "
            "(give --data_dir or --class_names).",
            file=sys.stderr,
        )
        names = [str(label) for label in range(trained.num_classes)]
    return names


def table(predicted: list, names: list[str], top: int) -> str:
    """One line per image: its file and the `top` classes with their probabilities, most probable first."""
    width = max(len(str(path)) for path, _ in predicted)
    name_width = max(map(len, names))
    lines = []
    for path, values in predicted:
        order = sorted(range(len(names)), key=lambda label: -values[label])[:top]
        cells = (f"{names[label]:<{name_width}} {values[label]:.4f}" for label in order)
        lines.append(f"{path!s:<{width}}  " + "  ".join(cells))
    return "\n".join(lines)


def as_csv(predicted: list, names: list[str]) -> str:
    """The columns file and prediction, then one probability column per class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "prediction", *names])
    for path, values in predicted:
        best = max(range(len(names)), key=values.__getitem__)
        writer.writerow([path, names[best], *(f"{value:.6g}" for value in values)])
    return text.getvalue()
