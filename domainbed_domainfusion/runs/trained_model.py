"""A finished run's `model.pkl` of any algorithm of the host: its network, its evaluation transform, its class names.

The host pickles plain values (dicts, lists, numbers, strings), tensors, and also numpy scalars, because it draws some
hparams with numpy. The file is read with torch's `weights_only` unpickler, which builds only these types. It calls
nothing else in the file, so an untrusted model cannot run code.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

from .. import pixels
from ..errors import InputError
from ..hosting import context, host
from ..hosting.held_out_ldm import with_ldm_of_run
from ..hosting.hparam import POCKET_DATASETS
from ..hosting.readable_images import UNREADABLE, cut_images_are_errors

KEYS = ("args", "model_input_shape", "model_num_classes", "model_num_domains", "model_hparams", "model_dict")
NUMPY_SCALARS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?", "U1")),
]


@dataclass(frozen=True)
class TrainedModel:
    """The content of `model.pkl`."""

    path: Path
    args: dict[str, Any]  # of the train script
    hparams: dict[str, Any]
    input_shape: tuple[int, int, int]
    num_classes: int
    num_domains: int
    state: dict[str, torch.Tensor]

    @classmethod
    def read(cls, path: Path) -> "TrainedModel":
        """Read a `model.pkl`, or the one in a job folder. Raises InputError if the file is not a model.pkl."""
        path = path / "model.pkl" if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"There is no model {path}: give the model.pkl of a finished run (train writes it at the "
                "end, unless --skip_model_save is given)."
            )
        try:
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                content = torch.load(path, map_location="cpu", weights_only=True)
            values = [content[key] for key in KEYS]
        except Exception as error:  # an unpickler may raise anything on bytes that are not a pickle
            called = re.search(r"GLOBAL (\S+)", str(error))
            why = f"it calls {called[1]}, and is not trusted" if called else f"{type(error).__name__}"
            raise InputError(
                f"{path} is not a whole model.pkl of the host's train script, plain values and tensors "
                f"({why}): copy it again, or train again."
            ) from error
        args, shape, classes, domains, hparams, state = values
        hparams = with_ldm_of_run(hparams, args["dataset"], args.get("test_envs", ()))
        return cls(path, args, hparams, tuple(shape), classes, domains, state)

    @property
    def dataset_class(self) -> Any:
        """The host's dataset class of the run. Raises InputError if this host does not have it."""
        return _host_class(
            host.datasets, self.args["dataset"], host.datasets.MultipleDomainDataset, "dataset", self.path
        )

    def algorithm(self, device: torch.device, transform: Callable, class_names: list[str] | None = None) -> Any:
        """The trained algorithm in eval mode. Published weights and DomainFusion's diffusion model are not loaded.

        transform: the evaluation transform of its images. class_names: for algorithms that put them into prompts.
        Raises InputError if the state does not fit.
        """
        context.dataset_built(_EvaluatedDataset(transform))
        algorithm_class = _host_class(
            host.algorithms, self.args["algorithm"], host.algorithms.Algorithm, "algorithm", self.path
        )
        name = algorithm_class.__name__
        try:
            with _without_published_weights():
                algorithm = algorithm_class(
                    self.input_shape, self.num_classes, self.num_domains, self._hparams(class_names)
                )
            missing, unexpected = algorithm.load_state_dict(self.state, strict=False)
        except RuntimeError as error:
            raise InputError(
                f"The weights in {self.path} do not fit this host's {name} "
                f"({_first_line(error)}): use the versions and the host that trained it."
            ) from error
        if missing:
            raise InputError(
                f"{self.path} lacks {missing[0]}, which this host's {name} has: use the versions "
                "and the host that trained it."
            )
        if unexpected:
            print(f"{self.path} holds more than {name} predicts with (first: {unexpected[0]}): left out.")
        return algorithm.to(device).eval()

    def pixel_range(self, data_dir: str | None = None) -> pixels.PixelRange:
        """The classifier's pixel range: its input shape, and mean and std of its evaluation transform."""
        return pixels.PixelRange.of(self.input_shape, _EvaluatedDataset(self.evaluation_transform(data_dir)))

    def evaluation_transform(self, data_dir: str | None = None) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image → (C, H, W), the classifier's input in the host's evaluation.

        Image folders: the host's own transform. Datasets of tensors (digits, Debug): resized to the input shape, in
        [0, 1]. Other datasets (WILDS, Spawrious, your own): the dataset is built from `data_dir`, and its transform is
        taken. Raises InputError if it cannot be built.
        """
        if issubclass(self.dataset_class, host.datasets.MultipleEnvironmentImageFolder):
            return _image_folder_transform(self.hparams)
        if self.args["dataset"] in POCKET_DATASETS:
            return self._tensor_transform
        try:
            dataset = self.dataset_class(
                data_dir or self.args["data_dir"], list(range(len(self.dataset_class.ENVIRONMENTS or ()))), self.hparams
            )
        except InputError:
            raise
        except Exception as error:  # a dataset may raise anything if its data is missing
            raise InputError(
                f"{self.args['dataset']} keeps its transform with its data, and cannot be built "
                f"({_first_line(error)}): give --data_dir."
            ) from error
        return pixels.transform_of(dataset.datasets[0]) or self._tensor_transform

    def class_names(self, data_dir: str | None = None) -> list[str] | None:
        """The class names in label order, or None.

        They come from the hparam class_names, else from the dataset class, else from the class folders on the disk.
        """
        names = self.hparams.get("class_names") or context.stated_class_names(self.dataset_class)
        data_dir = data_dir or self.args["data_dir"]
        if names is None and issubclass(self.dataset_class, host.datasets.MultipleEnvironmentImageFolder) and data_dir:
            folder = self._dataset_folder(data_dir)
            environments = _subfolders(folder) if folder and os.path.isdir(folder) else []
            names = _subfolders(os.path.join(folder, environments[-1])) if folder and environments else None
        return list(names) if names and len(names) == self.num_classes else None

    def _hparams(self, class_names: list[str] | None) -> dict[str, Any]:
        """The run's hparams without what only training needs: pretrained weights and DomainFusion's diffusion model."""
        values = dict(self.hparams)
        if values.get("backbone", "host") != "host":
            values["pretrained"] = False
        if "lambda3" in values:
            values.update(lambda2=0.0, lambda3=0.0)
        if "class_names" in values:
            names = class_names or map(str, range(self.num_classes))
            values["class_names"] = [name.replace("_", " ") for name in names]
        return values

    def _tensor_transform(self, image: Image.Image) -> torch.Tensor:
        shape = pixels.PixelRange(self.input_shape)
        stored = pixels.stored_version(image, self.input_shape[-1])
        return shape.to_classifier(pixels.from_store(stored[None]))[0]

    def _dataset_folder(self, data_dir: str) -> str | None:
        """The root folder that the dataset class passes to MultipleEnvironmentImageFolder. No image is read."""

        def stop(instance, root, *args, **kwargs):
            raise _RootFound(root)

        with _patched(host.datasets.MultipleEnvironmentImageFolder, __init__=stop):
            try:
                self.dataset_class(data_dir, [], self.hparams)
            except _RootFound as found:
                return found.args[0]
        return None


class _EvaluatedDataset:
    """A stand-in for the run's dataset, with the transform alone: an algorithm needs nothing else for predictions."""

    def __init__(self, transform: Callable):
        self.transform = transform
        self.datasets = [self]


class _RootFound(Exception):
    """Raised inside a dataset's constructor, with the dataset's root folder."""


def load_image(path: Path) -> Image.Image:
    """The image in RGB. Raises ValueError, with the reason, if it cannot be read completely."""
    with cut_images_are_errors():
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except UNREADABLE as error:
            raise ValueError(_first_line(error)) from error


def _image_folder_transform(hparams: dict[str, Any]) -> Callable:
    """The host's transform of a test environment, taken from its image-folder class over folders of one empty file."""
    folder_class = host.datasets.MultipleEnvironmentImageFolder
    init = getattr(folder_class.__init__, "__wrapped__", folder_class.__init__)  # without our check of the images
    with tempfile.TemporaryDirectory() as root:
        for environment in ("0", "1"):
            Path(root, environment, "0").mkdir(parents=True)
            Path(root, environment, "0", "0.png").touch()
        probe = object.__new__(folder_class)
        init(probe, root, [0, 1], False, hparams)
        return probe.datasets[0].transform


def _host_class(module: Any, name: str, base: type, kind: str, path: Path) -> type:
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(
            f"{path} was trained with the {kind} {name}, which this host ({host.NAME}) does not know: run "
            "this in the checkout that trained it."
        )
    return found


@contextlib.contextmanager
def _without_published_weights() -> Iterator[None]:
    """Inside the block, the host builds its networks without published weights: the model's state overwrites them."""
    import timm

    models, create = torchvision.models, timm.create_model
    build18, build50 = models.resnet18, models.resnet50
    with (
        _patched(models, resnet18=lambda **_: build18(), resnet50=lambda **_: build50()),
        _patched(timm, create_model=lambda name, **options: create(name, **{**options, "pretrained": False})),
    ):
        yield


@contextlib.contextmanager
def _patched(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of `owner` inside the block."""
    before = [getattr(owner, name) for name in attributes]
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in zip(attributes, before):
            setattr(owner, name, value)


def _subfolders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
