"""The files that decide what a diffusion model computes: each of them counts, and nothing else in the folder does."""

import hashlib
import json
import shutil

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.source import files_used, resolve_source
from tests.original_layout import write_original_checkpoint

#: What other programs leave in a model's folder, and what the hub offers beside the files that are read.
UNRELATED = [
    "README.md",
    "sample.png",
    "notes.json",
    "v1-4.safetensors",
    "model_index.json.bak",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/model.onnx",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.safetensors.index.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/generation_config.json",
    "tokenizer/chat_template.jinja",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
    "vae_encoder/config.json",
]


@pytest.fixture
def model(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "ldm")


@pytest.fixture
def sharded(model):
    """The same model with its U-Net's weights in several files."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet", low_cpu_mem_usage=False)
    shutil.rmtree(model / "unet")
    unet.save_pretrained(model / "unet", max_shard_size="100KB")
    return model


def digest(path) -> str:
    files = files_used(path)
    return hashlib.sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).hexdigest()


def names(path, files) -> set[str]:
    return {file.relative_to(path).as_posix() for file in files}


def assert_every_file_counts(path) -> None:
    before = digest(path)
    for file in files_used(path):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        if file.name.endswith(".index.json"):  # still has to be JSON: it names the other files
            file.write_bytes(json.dumps({**json.loads(content), "changed": 1}).encode())
        assert digest(path) != before, f"{file} does not count"
        file.write_bytes(content)
    assert digest(path) == before


def test_a_folder(model):
    assert names(model, files_used(model)) >= {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert_every_file_counts(model)


def test_the_files_listed_are_enough(model, tmp_path, images):
    """A copy of nothing else is the same model."""
    copy = tmp_path / "copy"
    for file in files_used(model):
        (copy / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy / file.relative_to(model))
    one, other = (LatentDiffusion.load(str(path), device="cpu") for path in (model, copy))
    assert torch.equal(one.embed(["a dog"]), other.embed(["a dog"]))
    z, t = one.encode(images), torch.tensor([1, 2, 3])
    prompts = one.embed(["a dog"]).expand(3, -1, -1)
    assert torch.equal(one.predict_noise(z, t, prompts), other.predict_noise(z, t, prompts))
    assert torch.equal(one.decode(z), other.decode(z))


@pytest.mark.parametrize("name", UNRELATED)
def test_an_unrelated_file_changes_nothing(model, name):
    before = digest(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("{}")
    assert digest(model) == before


def test_sharded_weights(sharded):
    found = names(sharded, files_used(resolve_source(str(sharded))))
    shards = {name for name in found if "-of-" in name}
    assert len(shards) > 1 and "unet/diffusion_pytorch_model.safetensors.index.json" in found
    assert_every_file_counts(sharded)


def test_a_shard_that_the_index_does_not_name_changes_nothing(sharded):
    before = digest(sharded)
    (sharded / "unet" / "diffusion_pytorch_model-00001-of-00099.safetensors").write_bytes(b"")
    assert digest(sharded) == before


def test_one_file_beside_shards_counts(sharded):
    """diffusers reads the shards, transformers the one file."""
    before = digest(sharded)
    (sharded / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert digest(sharded) != before


def test_a_single_checkpoint(folder, tmp_path):
    checkpoint = write_original_checkpoint(folder, tmp_path / "model.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    assert names(tmp_path, files_used(checkpoint)) >= {
        "model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    }
    assert_every_file_counts(checkpoint)
    before = digest(checkpoint)
    for name in ("model.json", "other.safetensors", "tokenizer/notes.txt"):
        (tmp_path / name).write_text("{}")
    assert digest(checkpoint) == before


def test_a_tiny_decoder(tmp_path):
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path)
    assert names(tmp_path, files_used(tmp_path)) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert_every_file_counts(tmp_path)
    before = digest(tmp_path)
    for name in ("taesd_decoder.safetensors", "notes.json"):
        (tmp_path / name).write_text("{}")
    assert digest(tmp_path) == before
