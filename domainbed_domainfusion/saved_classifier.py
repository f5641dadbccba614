"""A finished run's classifier: the `model.pkl` that the host's train writes, as the algorithm that wrote it."""

import pickle
from pathlib import Path
from typing import Any

import torch

from . import host
from .errors import InputError
from .pixels import PixelRange

#: What the host's transforms of image datasets subtract and divide by; its digits and its Debug sets are raw.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_classifier(path: Path, device: torch.device, **replaced: Any) -> torch.nn.Module:
    """The algorithm saved in a `model.pkl`, in eval mode, with its `pixel_range`.

    replaced: hparams to use in place of the saved ones, for what has moved since (the diffusion model, for example).
    Only plain values and tensors are unpickled. Raises InputError for a file that is damaged or not the host's, and
    where the host's own network cannot be built (it asks for its published weights first).
    """
    saved = _read(path, device)
    name, hparams = saved["args"]["algorithm"], {**saved["model_hparams"], **replaced}
    if hparams.get("backbone", "host") != "host":
        hparams["pretrained"] = False  # the saved weights replace the published ones
    try:
        algorithm = host.algorithms.get_algorithm_class(name)(
            saved["model_input_shape"], saved["model_num_classes"], saved["model_num_domains"], hparams)
        algorithm.load_state_dict(saved["model_dict"])
    except (NotImplementedError, RuntimeError, KeyError) as error:
        raise InputError(f"{path} does not fit the algorithm {name} of {host.NAME} ({_first_line(error)}): read it with "
                         "the host and the version that wrote it.") from error
    except OSError as error:
        raise InputError(f"The host's network needs its published weights to be built ({_first_line(error)}): run once "
                         "with a network.") from error
    algorithm.pixel_range = pixel_range_of(saved["args"]["dataset"], saved["model_input_shape"])
    return algorithm.to(device).eval()


def pixel_range_of(dataset: str, input_shape: tuple) -> PixelRange:
    """The classifier's pixel range on a dataset of the host, known by its class without the images."""
    kinds = [getattr(host.datasets, name, None) for name in ("MultipleEnvironmentImageFolder", "WILDSDataset")]
    normalised = issubclass(host.datasets.get_dataset_class(dataset), tuple(kind for kind in kinds if kind))
    return PixelRange(input_shape, IMAGENET_MEAN, IMAGENET_STD) if normalised else PixelRange(input_shape)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        wanted = ("args", "model_input_shape", "model_num_classes", "model_num_domains", "model_hparams", "model_dict")
        missing = [key for key in wanted if key not in saved]
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}): give a model.pkl that train has written to its "
                         "end.") from error
    if missing:
        raise InputError(f"{path} lacks {missing[0]}: give a model.pkl that the host's train has written.")
    return saved


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
