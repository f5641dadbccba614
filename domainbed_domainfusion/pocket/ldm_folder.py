"""The parts of the pocket LDM, and how they are saved as a Stable Diffusion 1.x folder."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import CLASS_NAMES, glyphs

TOKENS = 16
"""Length of a tokenised prompt (77 in Stable Diffusion). Ten words fit, and attention costs a fifth."""
# Longest first: a merge of a shorter word must not break a longer one apart.
WORDS = ("picture", "number", *sorted(CLASS_NAMES, key=len, reverse=True), "photo", "image", "digit", "the", "of", "an")


class Parts(NamedTuple):
    """The modules of a latent diffusion model and its tokenizer, of the diffusion library's own types."""

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any


def _byte_characters() -> list:
    """The 256 characters that stand for bytes in CLIP's byte-level vocabulary, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def tokenizer_files() -> dict[str, str]:
    """CLIP's byte-level vocabulary with merges for WORDS only; any other word is spelt out."""
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        so_far = pieces[0]
        for piece in pieces[1:]:
            if (so_far, piece) not in merges:
                merges.append((so_far, piece))
            so_far += piece
    single = _byte_characters()
    tokens = single + [character + "</w>" for character in single] + ["".join(merge) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": TOKENS,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    return {
        "vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def make_tokenizer() -> Any:
    """The CLIPTokenizer of `tokenizer_files`; every one of WORDS is a single token."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, text in tokenizer_files().items():
            Path(folder, name).write_text(text, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)


def make_parts() -> Parts:
    """Untrained parts in float32: about 0.8 M, 4.7 M and 0.15 M parameters (VAE, U-Net, text encoder)."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = make_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=glyphs.SIZE,
    )
    unet = UNet2DConditionModel(
        sample_size=glyphs.SIZE // 4,
        block_out_channels=(96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return Parts(vae, unet, text_encoder, tokenizer)


def make_scheduler() -> Any:
    """Stable Diffusion 1.x's own scheduler configuration."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _name_as_in_stable_diffusion(file: Path) -> None:
    """Add the prefix `text_model.` to the weights' names: transformers 5 drops it, transformers 4 needs it."""
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    prefix = "" if any(name.startswith("text_model.") for name in weights) else "text_model."
    save_file({prefix + name: weight.contiguous() for name, weight in weights.items()}, file, metadata={"format": "pt"})


def save_folder(parts: Parts, folder: str) -> None:
    """Write `parts` as a Stable Diffusion 1.x folder with float16 safetensors. Each file is written atomically."""
    from diffusers import StableDiffusionPipeline

    vae, unet, text_encoder = (
        copy.deepcopy(part).to(torch.float16, memory_format=torch.contiguous_format).eval() for part in parts[:3]
    )  # older releases refuse to save channels_last weights
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=parts.tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=".new"))
    try:
        pipeline.save_pretrained(made)
        # PNDM ignores clip_sample, but other schedulers are made from its configuration. Stable Diffusion's has it too.
        scheduler = made / "scheduler" / "scheduler_config.json"
        config = {**json.loads(scheduler.read_text()), "clip_sample": False}
        scheduler.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        _name_as_in_stable_diffusion(made / "text_encoder" / "model.safetensors")
        # The files that CLIPTokenizer saves differ between releases. Every release reads these four.
        shutil.rmtree(made / "tokenizer")
        (made / "tokenizer").mkdir()
        for name, text in tokenizer_files().items():
            (made / "tokenizer" / name).write_text(text, encoding="utf-8")
        for file in sorted(made.rglob("*")):
            if file.is_file():
                target = Path(folder) / file.relative_to(made)
                target.parent.mkdir(exist_ok=True)
                file.chmod(0o644)
                os.replace(file, target)
    finally:
        shutil.rmtree(made)
