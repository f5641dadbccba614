"""Resolves the name of a latent diffusion model to a local folder or file, and checks that it is complete and usable.

A hub id is downloaded if it is not in the hub's cache. No weight is read. Neither diffusers nor transformers is needed,
so a run calls `resolve_source` before anything slow.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..errors import InputError
from ..pocket import LDM_FOLDER
from . import single_file
from .weights import header

#: Models inside this package, by name.
EMBEDDED = {"pocket": LDM_FOLDER}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
FILES = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/*"]
FILES += [f"{part}/{name}" for part, weights in WEIGHTS.items() for name in ("config.json", weights)]
FILES += [f"{part}/{weights}.index.json" for part, weights in WEIGHTS.items()]
FILES += [f"{part}/{weights[:-12]}-*-of-*.safetensors" for part, weights in WEIGHTS.items()]
TINY_FILES = ["config.json", WEIGHTS["vae"]]
SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)  # a file in the same folder
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"]


def resolve_source(
    source: str, revision: str | None = None, decoder: str | None = None, scheduler: str | None = None
) -> Path:
    """The local folder or file of `source`, after its layout has been checked.

    source: "pocket", the embedded model; a local folder in diffusers' layout of Stable Diffusion 1.x and 2.x; a hub id
    such as "CompVis/stable-diffusion-v1-4"; or one `.safetensors` checkpoint of Stable Diffusion 1.x in the layout of
    the original release. A hub id in the hub's cache needs no network. Otherwise its safetensors files are downloaded
    now. No weight is read, and no pickle is ever opened.
    decoder, scheduler: if given, checked too, see `resolve_tiny_half` and `check_scheduler`.
    Raises InputError (one sentence with the remedy) for everything that could not be loaded later.
    """
    path = Path(EMBEDDED.get(source, source)).expanduser()
    if path.is_file():
        path = path.absolute()  # links are not followed: the tokenizer lies beside a link into the hub's cache
        single_file.check_checkpoint(path)
        tokenizer_folder(path)
    elif path.is_dir():
        path = path.resolve()
        check_folder(path)
    elif HUB_ID.fullmatch(source):
        path = _from_hub(source, revision).resolve()
    else:
        raise InputError(
            f"The latent diffusion model {source} does not exist: give an existing folder of a Stable Diffusion 1.x or "
            "2.x in diffusers' layout, a .safetensors checkpoint, or a hub id such as CompVis/stable-diffusion-v1-4."
        )
    if decoder is not None:
        resolve_tiny_half(decoder, path, "decoder")
    if scheduler is not None:
        check_scheduler(scheduler, path)
    return path


def check_scheduler(name: str, ldm: Path) -> None:
    """Raise InputError for "lcm" (latent consistency) if the checked source `ldm` is no such model."""
    own = _json(config_folder(ldm), "scheduler/scheduler_config.json").get("_class_name")
    if name == "lcm" and own != "LCMScheduler":
        raise InputError(
            f"The scheduler lcm needs a latent consistency model, but the model in {ldm} has a {own}: use "
            "ddim, pndm or dpmsolver++, or a model with an LCMScheduler, such as "
            "SimianLuo/LCM_Dreamshaper_v7."
        )


def resolve_tiny_half(source: str, ldm: Path, half: str) -> Path:
    """The folder of an AutoencoderTiny whose half, "decoder" or "encoder", fits the checked source `ldm`.

    source: a local folder with config.json and safetensors weights, or a hub id such as "madebyollin/taesd".
    Raises InputError for anything else.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(source):
            raise InputError(
                f"The {half} {source} does not exist: give an existing folder of a diffusers "
                "AutoencoderTiny or a hub id such as madebyollin/taesd."
            )
        folder = _from_hub(source, None, TINY_FILES, partial(_check_tiny_folder, half=half))
    _check_tiny_folder(folder, half)
    vae, tiny = _json(config_folder(ldm), "vae/config.json"), _json(folder, "config.json")
    wanted = (vae.get("latent_channels", 4), 2 ** (len(vae["block_out_channels"]) - 1))
    if half == "decoder":
        verb, step = "reads", tiny.get("upsampling_scaling_factor", 2)
        levels = len(tiny.get("num_decoder_blocks", (3, 3, 3, 1)))
    else:
        verb, step, levels = "makes", 2, len(tiny.get("num_encoder_blocks", (1, 3, 3, 3)))
    offered = (tiny.get("latent_channels", 4), step ** (levels - 1))
    if wanted != offered:
        raise InputError(
            f"The {half} in {folder} {verb} {offered[0]} channels at {offered[1]} pixels per latent, but "
            f"the model's latents have {wanted[0]} at {wanted[1]}: use one made for this model."
        )
    return folder.resolve()


def _check_tiny_folder(folder: Path, half: str) -> None:
    kind = _json(folder, "config.json").get("_class_name")
    if kind != "AutoencoderTiny":
        raise InputError(
            f"The {half} in {folder} is of class {kind}, not an AutoencoderTiny: give the folder of one, "
            "such as madebyollin/taesd."
        )
    _check_weights(folder, WEIGHTS["vae"])


def config_folder(path: Path) -> Path:
    """The folder with a checked source's configuration: its own folder, or for a single file one of this package."""
    return single_file.CONFIGS if path.is_file() else path


def tokenizer_folder(path: Path) -> Path:
    """The tokenizer's folder of a checked source. For a single file: `tokenizer` beside it, else CLIP's from the hub.

    Raises InputError if there is none.
    """
    if path.is_dir():
        return path / "tokenizer"
    beside = path.parent / "tokenizer"
    if beside.is_dir():
        _check_tokenizer(path.parent)
        return beside
    try:
        return _from_hub(single_file.TOKENIZER, None, TOKENIZER_FILES, lambda folder: _check_tokenizer(folder, ""))
    except InputError as error:
        raise InputError(
            f"{path} has no tokenizer folder beside it and {single_file.TOKENIZER} could not be had from "
            "the hub: put its vocab.json and merges.txt into one, or run once with a network."
        ) from error


def files_used(path: Path) -> list[Path]:
    """The files of a checked source that decide what the model computes, in a fixed order; they all exist.

    path: a model's folder or checkpoint from `resolve_source`, or a tiny autoencoder's folder from `resolve_tiny_half`.
    Other precisions, other frameworks' weights, the safety checker and everything else in the folder are left out.
    """
    if path.is_file():
        return [path, *_tokenizer_files(tokenizer_folder(path))]
    if not (path / "model_index.json").is_file():  # a tiny autoencoder
        return [path / "config.json", *_weights_and_index(path, WEIGHTS["vae"])]
    files = [path / "model_index.json", path / "scheduler" / "scheduler_config.json"]
    files += _tokenizer_files(path / "tokenizer")
    for part, weights in WEIGHTS.items():
        files += [path / part / "config.json", *_weights_and_index(path / part, weights)]
    return files


def _tokenizer_files(folder: Path) -> list[Path]:
    """The existing files of a tokenizer's folder that CLIP's tokenizer class reads."""
    return [folder / name for name in (*TOKENIZER_FILES, "added_tokens.json") if (folder / name).is_file()]


def weight_files(part: Path) -> list[Path]:
    """The safetensors files from which a part's network is read; `part` is a folder that `check_folder` has checked."""
    return [part / name for name in _shards(part, WEIGHTS[part.name])]


def _weights_and_index(part: Path, weights: str) -> list[Path]:
    """A part's one file of weights, or its index and shards. If both lie there, both count: libraries differ here."""
    index, one = part / f"{weights}.index.json", part / weights
    names = [weights] if one.is_file() else []
    if index.is_file():
        names += [index.name, *(name for name in _shards(part, weights) if name not in names)]
    return [part / name for name in names]


def _shards(part: Path, weights: str) -> list[str]:
    """The names of a part's files of weights: those that its index names, or the one file.

    Raises InputError for an index that names anything but safetensors files beside it.
    """
    index = f"{weights}.index.json"
    if not (part / index).is_file():
        return [weights]
    content = _json(part, index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    names = shards.values() if isinstance(shards, dict) else [None]
    if not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names):
        raise InputError(
            f"{part / index} does not name safetensors files beside it: do not use this model, or fetch it again from "
            "a source that you trust."
        )
    return sorted(set(names))


def check_folder(folder: Path) -> None:
    """Raise InputError unless `folder` is a complete Stable Diffusion 1.x or 2.x folder with safetensors weights."""
    index = _json(folder, "model_index.json")
    for part, meaning in (("text_encoder_2", "SDXL"), ("transformer", "a transformer, not a U-Net")):
        if index.get(part, [None])[0] is not None:
            _refuse(folder, f"it has a {part} ({meaning})")
    unet, vae, text = (_json(folder, f"{part}/config.json") for part in WEIGHTS)
    scheduler = _json(folder, "scheduler/scheduler_config.json")
    _check_tokenizer(folder)
    _check_configs(folder, unet, vae, text, scheduler)
    for part, weights in WEIGHTS.items():
        _check_weights(folder / part, weights)


def _check_configs(folder: Path, unet: dict, vae: dict, text: dict, scheduler: dict) -> None:
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        _refuse(folder, f"it predicts {prediction}, neither epsilon nor v_prediction")
    if scheduler.get("rescale_betas_zero_snr"):
        _refuse(folder, "nothing of the image is left at its last timestep (rescale_betas_zero_snr)")
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        _refuse(folder, f"its U-Net is a {unet['_class_name']}")
    if vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        _refuse(folder, f"its VAE is a {vae['_class_name']}, not an AutoencoderKL")
    if unet.get("addition_embed_type") or unet.get("class_embed_type") or unet.get("encoder_hid_dim"):
        _refuse(folder, "its U-Net takes more conditions than the text")
    latents, given, predicted = vae.get("latent_channels", 4), unet.get("in_channels", 4), unet.get("out_channels", 4)
    if not latents == given == predicted:
        _refuse(
            folder,
            f"its U-Net maps {given} to {predicted} channels where the VAE has {latents} "
            "(an inpainting or depth model?)",
        )
    wanted, offered = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if wanted != offered:
        _refuse(folder, f"its U-Net attends to {wanted}-dimensional text but the text encoder gives {offered}")


def _check_tokenizer(folder: Path, place: str = "tokenizer/") -> None:
    if not (folder / f"{place}tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / f"{place}{name}").is_file():
                _incomplete(folder, f"{place}{name}")


def _check_weights(part: Path, weights: str) -> None:
    for shard in _shards(part, weights):
        if not (part / shard).is_file():
            pickled = sorted(path.name for path in part.glob("*.bin"))
            if pickled:
                raise InputError(
                    f"{part} has only pickled weights ({pickled[0]}), which are never read: save the "
                    "model again as safetensors (save_pretrained with safe_serialization=True)."
                )
            _incomplete(part.parent, f"{part.name}/{shard}")
        header(part / shard)


def _from_hub(
    source: str, revision: str | None, patterns: list[str] = FILES, check: Callable[[Path], None] = check_folder
) -> Path:
    """The snapshot's folder: from the cache if it is complete there, else downloaded (only files in `patterns`)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=True))
        check(folder)
        return folder
    except (LocalEntryNotFoundError, InputError):
        pass  # not in the cache, or incomplete
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # errors of the hub's client, of its HTTP library and of the system
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"The latent diffusion model {source} is neither a folder here nor in the hub's cache and "
            f"could not be downloaded ({type(error).__name__}: {reason}): run once with a network and "
            "without HF_HUB_OFFLINE, or give a local folder."
        ) from error
    check(folder)
    return folder


def _json(folder: Path, name: str) -> dict:
    path = folder / name
    if not path.is_file():
        _incomplete(folder, name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): fetch the model again.") from error


def _incomplete(folder: Path, name: str) -> None:
    raise InputError(
        f"The latent diffusion model in {folder} is incomplete, {name} is missing: fetch it again, or "
        "give a folder in diffusers' layout of Stable Diffusion 1.x and 2.x."
    )


def _refuse(folder: Path, reason: str) -> None:
    raise InputError(
        f"The model in {folder} does not have the layout of Stable Diffusion 1.x and 2.x: {reason}; use one that "
        "has it, such as CompVis/stable-diffusion-v1-4."
    )
