"""A single checkpoint in the original release's layout: the same networks as the folder; refused files, and why."""

import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from domainbed_domainfusion.diffusion import single_file
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.source import resolve_source
from domainbed_domainfusion.errors import InputError
from tests.original_layout import write_original_checkpoint

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory):
    """With its tokenizer beside it."""
    place = tmp_path_factory.mktemp("single")
    shutil.copytree(folder / "tokenizer", place / "tokenizer")
    return write_original_checkpoint(folder, place / "model.safetensors")


@pytest.fixture
def tiny_configs(folder, monkeypatch):
    """A single file has the architecture of Stable Diffusion 1.x; here that is the tiny folder's."""
    monkeypatch.setattr(single_file, "CONFIGS", folder)


def sentence_of(path):
    with pytest.raises(InputError) as error:
        resolve_source(str(path))
    return str(error.value)


def changed(checkpoint, tmp_path, remove=(), **tensors):
    """A copy of the checkpoint without the tensors whose names start with `remove`, and with other tensors added."""
    remaining = {name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith(tuple(remove))}
    save_file({**remaining, **tensors}, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_folder_bit_for_bit(folder, checkpoint, tiny_configs, dtype):
    one, other = (LatentDiffusion.load(str(source), device="cpu", dtype=dtype) for source in (checkpoint, folder))
    for part in ("_unet", "_vae"):
        ours, theirs = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not getattr(one, part).training and not any(p.requires_grad for p in getattr(one, part).parameters())
        assert {p.dtype for p in getattr(one, part).parameters()} == {one.dtype}
    assert torch.equal(one.embed(["a dog", ""]), other.embed(["a dog", ""]))
    assert torch.equal(one.alphas_cumprod, other.alphas_cumprod)
    images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    assert torch.equal(one.encode(images), other.encode(images))


def test_the_architecture_is_stable_diffusion_1s():
    """Sizes as published with the model: 860 M, 84 M and 123 M parameters."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        networks = [
            kind.from_config(kind.load_config(single_file.CONFIGS / part))
            for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        ]
        networks.append(CLIPTextModel(CLIPTextConfig.from_pretrained(single_file.CONFIGS / "text_encoder")))
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [859520964, 83653863, 123060480]
    alphas = DDIMScheduler.from_pretrained(single_file.CONFIGS / "scheduler").alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(alphas, (1 - betas).cumprod(0))


@pytest.mark.parametrize(
    "added, named",
    [
        ({"conditioner.embedders.0.x": (2,)}, "an SDXL model"),
        ({"cond_stage_model.model.token_embedding.weight": (2, 2)}, "a Stable Diffusion 2 model"),
        ({"control_model.time_embed.0.weight": (2, 2)}, "a ControlNet"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "an inpainting model"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 5, 3, 3)}, "a depth model"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 6, 3, 3)}, "a model of 6 input channels"),
        (
            {f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
            "a model that attends to 1024-dimensional text (Stable Diffusion 2 or SDXL)",
        ),
    ],
)
def test_another_model_is_refused_by_name(checkpoint, tiny_configs, tmp_path, added, named):
    path = changed(checkpoint, tmp_path, **{name: torch.zeros(shape) for name, shape in added.items()})
    assert sentence_of(path) == (
        f"{path} is not a Stable Diffusion 1.x checkpoint but {named}: use one that is, such "
        "as CompVis/stable-diffusion-v1-4, or the folder of a Stable Diffusion 2.x in diffusers' layout."
    )


@pytest.mark.parametrize("missing", [UNET, "first_stage_model.", "cond_stage_model.transformer."])
def test_a_part_that_is_missing(checkpoint, tiny_configs, tmp_path, missing):
    path = changed(checkpoint, tmp_path, remove=[missing])
    assert sentence_of(path) == (
        f"{path} is no whole Stable Diffusion 1.x checkpoint, it has no {missing}*: use one with U-Net, VAE and text "
        "encoder, or give the folder of a model in diffusers' layout."
    )


def test_a_weight_that_is_missing_is_not_left_at_random(checkpoint, tiny_configs, tmp_path):
    path = changed(checkpoint, tmp_path, remove=[f"{UNET}out.0.weight"])
    shutil.copytree(checkpoint.parent / "tokenizer", tmp_path / "tokenizer")
    total = sum(name.startswith(UNET) for name in load_file(checkpoint))
    with pytest.raises(InputError) as error:
        LatentDiffusion.load(str(path), device="cpu")
    assert str(error.value) == (
        f"{path} is no whole Stable Diffusion 1.x checkpoint: its {UNET}* are {total - 1} "
        f"tensors of {total}; fetch another one."
    )


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt"])
def test_a_pickle_is_never_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"pickle")
    assert sentence_of(tmp_path / name) == (
        f"{tmp_path}/{name} is not a .safetensors file, and pickled checkpoints are never read: give one in "
        "safetensors, or a folder in diffusers' layout."
    )


def test_a_download_that_broke_off(checkpoint, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(checkpoint.read_bytes()[:-1])
    assert sentence_of(tmp_path / "model.safetensors") == (
        f"{tmp_path}/model.safetensors is damaged or only partly downloaded: delete it and fetch it again."
    )


def test_without_a_tokenizer_and_without_a_network(checkpoint, tiny_configs, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = changed(checkpoint, tmp_path)
    assert sentence_of(path) == (
        f"{path} has no tokenizer folder beside it and openai/clip-vit-large-patch14 could not be had from the hub: "
        "put its vocab.json and merges.txt into one, or run once with a network."
    )


def test_the_hubs_tokenizer_from_its_cache(folder, checkpoint, tiny_configs, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache" / "models--openai--clip-vit-large-patch14" / "snapshots" / ("0" * 40)
    shutil.copytree(folder / "tokenizer", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **options: download(*a, **{**options, "local_files_only": True}, cache_dir=tmp_path / "cache"),
    )
    path = changed(checkpoint, tmp_path)
    ldm = LatentDiffusion.load(str(path), device="cpu")
    assert torch.equal(ldm.embed(["a dog"]), LatentDiffusion.load(str(folder), device="cpu").embed(["a dog"]))


def test_a_link_keeps_the_tokenizer_beside_it(checkpoint, tiny_configs, tmp_path):
    """As in the hub's cache, where files are links to blobs elsewhere."""
    (tmp_path / "blobs").mkdir()
    blob = shutil.copy(checkpoint, tmp_path / "blobs" / "abc")
    shutil.copytree(checkpoint.parent / "tokenizer", tmp_path / "snapshot" / "tokenizer")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(blob)
    assert resolve_source(str(tmp_path / "snapshot" / "model.safetensors")).parent == tmp_path / "snapshot"
