"""A finished run's `model.pkl` of any algorithm of the host: its network, its evaluation transform, its class names.

The host pickles plain values (dicts, lists, numbers, texts) and tensors. It is read with torch's `weights_only`
unpickler, which builds these and, because the host draws some hparams with numpy, numpy's scalars; nothing else in the
file is ever called, so a model from someone else cannot run code here.
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
from PIL import Image, ImageFile

from .. import pixels
from ..errors import InputError
from ..hosting import context, host
from ..hosting.hparam import POCKET_DATASETS

KEYS = ("args", "model_input_shape", "model_num_classes", "model_num_domains", "model_hparams", "model_dict")
NUMPY_SCALARS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?", "U1")),
]


@dataclass(frozen=True)
class TrainedModel:
    """What `model.pkl` says."""

    path: Path
    args: dict[str, Any]  # of the train script
    hparams: dict[str, Any]
    input_shape: tuple[int, int, int]
    num_classes: int
    num_domains: int
    state: dict[str, torch.Tensor]

    @classmethod
    def read(cls, path: Path) -> "TrainedModel":
        """Read a `model.pkl`, or the one in a job folder. Raises InputError if it is not one."""
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
        except Exception as error:  # whatever an unpickler raises on bytes that are no pickle
            called = re.search(r"GLOBAL (\S+)", str(error))
            why = f"it calls {called[1]}, and is not trusted" if called else f"{type(error).__name__}"
            raise InputError(
                f"{path} is not a whole model.pkl of the host's train script, plain values and tensors "
                f"({why}): copy it again, or train again."
            ) from error
        args, shape, classes, domains, hparams, state = values
        return cls(path, args, hparams, tuple(shape), classes, domains, state)

    @property
    def dataset_class(self) -> Any:
        """The host's dataset class of the run; raises InputError if this host does not know it."""
        return _named(host.datasets, self.args["dataset"], host.datasets.MultipleDomainDataset, "dataset", self.path)

    def algorithm(self, device: torch.device, transform: Callable, class_names: list[str] | None = None) -> Any:
        """The trained algorithm in eval mode, with no look for published weights or for DomainFusion's diffusion model.

        transform: what its images come through; class_names: for algorithms that put them into prompts.
        Raises InputError if the state does not fit.
        """
        context.dataset_built(_Evaluated(transform))
        kind = _named(host.algorithms, self.args["algorithm"], host.algorithms.Algorithm, "algorithm", self.path)
        try:
            with _untrained():
                algorithm = kind(self.input_shape, self.num_classes, self.num_domains, self._hparams(class_names))
            missing, unexpected = algorithm.load_state_dict(self.state, strict=False)
        except RuntimeError as error:
            raise InputError(
                f"The weights in {self.path} do not fit this host's {kind.__name__} "
                f"({_first_line(error)}): use the versions and the host that trained it."
            ) from error
        if missing:
            raise InputError(
                f"{self.path} lacks {missing[0]}, which this host's {kind.__name__} has: use the versions "
                "and the host that trained it."
            )
        if unexpected:
            print(f"{self.path} holds more than {kind.__name__} predicts with (first: {unexpected[0]}): left out.")
        return algorithm.to(device).eval()

    def pixel_range(self, data_dir: str | None = None) -> pixels.PixelRange:
        """What its classifier takes: the input shape, and the mean and deviation that its evaluation transform has."""
        return pixels.PixelRange.of(self.input_shape, _Evaluated(self.evaluation_transform(data_dir)))

    def evaluation_transform(self, data_dir: str | None = None) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image → (C, H, W) as the host's evaluation gives it to the classifier.

        Image folders: the host's own transform. Datasets of tensors (digits, Debug): resized to the input shape, in
        [0, 1]. Others (WILDS, Spawrious, your own) are built from `data_dir` to see theirs; raises InputError if that
        cannot be.
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
        except Exception as error:  # whatever a dataset raises without its data
            raise InputError(
                f"{self.args['dataset']} keeps its transform with its data, and cannot be built "
                f"({_first_line(error)}): give --data_dir."
            ) from error
        return pixels.transform_of(dataset.datasets[0]) or self._tensor_transform

    def class_names(self, data_dir: str | None = None) -> list[str] | None:
        """In label order: the hparam's, the dataset's, or its class folders' if they are still there; else None."""
        names = self.hparams.get("class_names") or context.stated_class_names(self.dataset_class)
        data_dir = data_dir or self.args["data_dir"]
        if names is None and issubclass(self.dataset_class, host.datasets.MultipleEnvironmentImageFolder) and data_dir:
            folder = self._dataset_folder(data_dir)
            environments = _folders(folder) if folder and os.path.isdir(folder) else []
            names = _folders(os.path.join(folder, environments[-1])) if folder and environments else None
        return list(names) if names and len(names) == self.num_classes else None

    def _hparams(self, class_names: list[str] | None) -> dict[str, Any]:
        """The run's, but for what only training needs: other weights to start from, DomainFusion's diffusion model."""
        values = dict(self.hparams)
        if values.get("backbone", "host") != "host":
            values["pretrained"] = False
        if self.args["algorithm"] == "DomainFusion":
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
        """root/<environment>/<class> as the dataset's class names it to the host, found without reading it."""

        def stop(instance, root, *args, **kwargs):
            raise _Root(root)

        with _replaced(host.datasets.MultipleEnvironmentImageFolder, __init__=stop):
            try:
                self.dataset_class(data_dir, [], self.hparams)
            except _Root as found:
                return found.args[0]
        return None


class _Evaluated:
    """Stands for the run's dataset: all that an algorithm may learn from it here is the transform."""

    def __init__(self, transform: Callable):
        self.transform = transform
        self.datasets = [self]


class _Root(Exception):
    """Carries a dataset's folder out of its constructor."""


def load_image(path: Path) -> Image.Image:
    """The whole image in RGB. Raises ValueError, with the reason, if it cannot be read or only in part."""
    with _replaced(ImageFile, LOAD_TRUNCATED_IMAGES=False):  # the host accepts half an image; a prediction should not
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files it cannot decode
            raise ValueError(_first_line(error)) from error


def _image_folder_transform(hparams: dict[str, Any]) -> Callable:
    """What the host's image-folder class gives to a test environment: asked of it, over folders of one empty file."""
    folder_class = host.datasets.MultipleEnvironmentImageFolder
    init = getattr(folder_class.__init__, "__wrapped__", folder_class.__init__)  # without our check of every image
    with tempfile.TemporaryDirectory() as root:
        for environment in ("0", "1"):
            Path(root, environment, "0").mkdir(parents=True)
            Path(root, environment, "0", "0.png").touch()
        asked = object.__new__(folder_class)
        init(asked, root, [0, 1], False, hparams)
        return asked.datasets[0].transform


def _named(module: Any, name: str, base: type, kind: str, path: Path) -> type:
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(
            f"{path} was trained with the {kind} {name}, which this host ({host.NAME}) does not know: run "
            "this in the checkout that trained it."
        )
    return found


@contextlib.contextmanager
def _untrained() -> Iterator[None]:
    """The host's ResNets begin with published weights, which would be downloaded only to be overwritten."""
    import timm

    models, create = torchvision.models, timm.create_model
    build18, build50 = models.resnet18, models.resnet50
    with (
        _replaced(models, resnet18=lambda **_: build18(), resnet50=lambda **_: build50()),
        _replaced(timm, create_model=lambda name, **options: create(name, **{**options, "pretrained": False})),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Attributes of `owner` replaced for a while."""
    before = [getattr(owner, name) for name in attributes]
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in zip(attributes, before):
            setattr(owner, name, value)


def _folders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
