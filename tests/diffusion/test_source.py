"""Every way a folder of a latent diffusion model can be wrong, with its sentence; hub ids."""

import json
import shutil
import sys

import huggingface_hub.constants
import pytest

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.source import resolve_source
from domainbed_domainfusion.errors import InputError

CURE = "use one that has it, such as CompVis/stable-diffusion-v1-4."
FETCH = "fetch it again, or give a folder in diffusers' layout of Stable Diffusion 1.x and 2.x."


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sentence_of(source):
    with pytest.raises(InputError) as error:
        resolve_source(str(source))
    sentence = str(error.value)
    assert "\n" not in sentence
    with pytest.raises(InputError):
        LatentDiffusion.load(str(source), device="cpu")
    return sentence


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_an_incomplete_folder_names_what_is_missing(broken, missing):
    (broken / missing).unlink()
    assert sentence_of(broken) == f"The latent diffusion model in {broken} is incomplete, {missing} is missing: {FETCH}"


def test_a_tokenizer_without_vocabulary(broken):
    for name in ("tokenizer.json", "vocab.json"):
        (broken / "tokenizer" / name).unlink(missing_ok=True)
    assert "is incomplete, tokenizer/vocab.json is missing" in sentence_of(broken)


@pytest.mark.parametrize(
    "file, changes, reason",
    [
        ("model_index.json", {"text_encoder_2": ["transformers", "X"]}, "it has a text_encoder_2 (SDXL)"),
        ("model_index.json", {"transformer": ["diffusers", "X"]}, "it has a transformer (a transformer, not a U-Net)"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "it predicts sample, neither epsilon nor v_prediction",
        ),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "nothing of the image is left at its last timestep (rescale_betas_zero_snr)",
        ),
        (
            "unet/config.json",
            {"cross_attention_dim": 768},
            "its U-Net attends to 768-dimensional text but the text encoder gives 16",
        ),
        (
            "unet/config.json",
            {"in_channels": 9},
            "its U-Net maps 9 to 4 channels where the VAE has 4 (an inpainting or depth model?)",
        ),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "its U-Net takes more conditions than the text"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "its U-Net is a UNet3DConditionModel"),
        ("vae/config.json", {"_class_name": "VQModel"}, "its VAE is a VQModel, not an AutoencoderKL"),
    ],
)
def test_another_layout_is_refused_with_the_reason(broken, file, changes, reason):
    edit(broken / file, **changes)
    assert sentence_of(broken) == (
        f"The model in {broken} does not have the layout of Stable Diffusion 1.x and 2.x: {reason}; {CURE}"
    )


def test_pickled_weights_are_never_read(broken):
    (broken / "unet" / "diffusion_pytorch_model.safetensors").rename(broken / "unet" / "diffusion_pytorch_model.bin")
    assert sentence_of(broken) == (
        f"{broken}/unet has only pickled weights (diffusion_pytorch_model.bin), which are never read: save the model "
        "again as safetensors (save_pretrained with safe_serialization=True)."
    )


def refused_at_loading(source):
    """The sentence of a model whose files are whole and do not belong together: it is found before a weight is read."""
    with pytest.raises(InputError) as error:
        model = LatentDiffusion.load(str(source), device="cpu")
        model.embed(["a photo of a cat"])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"conv_in.weight": "../../../../etc/passwd"}},
        {"weight_map": {"conv_in.weight": "/etc/shard.safetensors"}},
        {"weight_map": {"conv_in.weight": "..safetensors"}},
        {"weight_map": {"conv_in.weight": "shard.bin"}},
        {"weight_map": {"conv_in.weight": 3}},
        {"weight_map": ["a.safetensors"]},
        {"weight_map": None},
        ["weight_map"],
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(broken, index):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert sentence_of(broken) == (
        f"{path} does not name safetensors files beside it: do not use this model, or fetch it again from a source "
        "that you trust."
    )


@pytest.mark.parametrize(
    "file, changes, sentence",
    [
        ("unet/config.json", {"block_out_channels": [16, 64]}, "The weight down_blocks.1."),
        ("unet/config.json", {"block_out_channels": [2**20, 2**20]}, "The weight conv_in."),
        ("unet/config.json", {"block_out_channels": [2**40, 2**41]}, "{}/unet/config.json describes no network"),
        ("vae/config.json", {"block_out_channels": [8, 8, 2**20]}, "The weight "),
        ("text_encoder/config.json", {"vocab_size": 2**40}, "The weight "),
        ("vae/config.json", {"layers_per_block": 9}, "The files in {}/vae have "),
        ("unet/config.json", {"down_block_types": ["Evil", "DownBlock2D"]}, "{}/unet/config.json describes no network"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused_before_anything_is_allocated(broken, file, changes, sentence):
    edit(broken / file, **changes)
    assert sentence.format(broken) in refused_at_loading(broken)


def test_code_in_a_models_folder_is_never_run(broken):
    """Neither a module beside the weights nor one that a config names, as the libraries' remote code does."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "."):
        for name in ("evil.py", "pipeline.py", "__init__.py", "modeling_evil.py"):
            (broken / part / name).write_text("raise SystemExit('this ran')")
    remote = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    for file in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        edit(broken / file, auto_map=remote, custom_pipeline="evil")
    edit(broken / "model_index.json", _class_name=["pipeline", "Evil"], unet=["evil", "Evil"])
    model = LatentDiffusion.load(str(broken), device="cpu")
    assert len(model.embed(["a photo of a cat"])) == 1
    assert not [name for name in sys.modules if "evil" in name]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"])
def test_a_file_that_is_no_safetensors(broken, content):
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(content)
    assert sentence_of(broken) == f"{path} is damaged or only partly downloaded: delete it and fetch it again."


def test_a_download_that_broke_off(broken):
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert sentence_of(broken) == f"{path} is damaged or only partly downloaded: delete it and fetch it again."


def test_a_config_that_is_no_json(broken):
    (broken / "unet" / "config.json").write_text("{")
    assert sentence_of(broken).startswith(f"{broken}/unet/config.json is not valid JSON")


def test_a_folder_that_does_not_exist(tmp_path):
    assert sentence_of(tmp_path / "nothing") == (
        f"The latent diffusion model {tmp_path}/nothing does not exist: give an existing folder of a Stable Diffusion "
        "1.x or 2.x in diffusers' layout, a .safetensors checkpoint, or a hub id such as CompVis/stable-diffusion-v1-4."
    )


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    sentence = sentence_of("somebody/some-model")
    assert sentence.startswith(
        "The latent diffusion model somebody/some-model is neither a folder here nor in the "
        "hub's cache and could not be downloaded ("
    )
    assert sentence.endswith("): run once with a network and without HF_HUB_OFFLINE, or give a local folder.")


def test_a_hub_id_in_the_cache_needs_no_network(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--somebody--some-model"
    snapshot = shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    from huggingface_hub import snapshot_download

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **options: snapshot_download(*a, **options, cache_dir=tmp_path)
    )
    assert resolve_source("somebody/some-model") == snapshot.resolve()
    with pytest.raises(InputError, match="could not be downloaded"):
        resolve_source("somebody/some-model", revision="other")
