"""Randomly initialised Stable Diffusion 1.x folders: "tiny" for tests, "small" for a smoke run on real images, and
"full" with the U-Net (860 M) and the VAE (84 M) of Stable Diffusion 1.x itself, for benchmarks.

    python -m tests.tiny_ldm FOLDER [--size small] [--seed 0]
"""

import argparse
import json
from pathlib import Path

import torch

SIZES = {
    # width: text width; unet, vae: channels per level; layers: per block; heads: of the U-Net's attention
    "tiny": {"width": 16, "unet": (16, 32), "vae": (8, 8, 16), "groups": 4, "layers": 1, "heads": 2},
    "small": {"width": 32, "unet": (32, 64, 64, 64), "vae": (8, 16, 32, 32), "groups": 8, "layers": 1, "heads": 2},
    "full": {
        "width": 768,
        "unet": (320, 640, 1280, 1280),
        "vae": (128, 256, 512, 512),
        "groups": 32,
        "layers": 2,
        "heads": 8,
    },
}
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tiny_autoencoder(folder, seed: int = 0) -> Path:
    """Write a random AutoencoderTiny that fits the "tiny" model, with another scaling factor; its folder."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            scaling_factor=1.7,
        ).save_pretrained(folder)
    return Path(folder)


def make_tiny_stable_diffusion(
    folder, seed: int = 0, size: str = "tiny", dtype: torch.dtype = torch.float32, **unet_options
) -> Path:
    """Write a random SD-1.x folder (safetensors, no safety checker) and return its path.

    tiny: 0.3 MB, 4 pixels per latent; small: 4 levels as in SD, 8 pixels per latent. `unet_options` go to the
    U-Net's config; `dtype` is that of the files' weights.
    """
    from diffusers import StableDiffusionPipeline

    folder = Path(folder)
    shape = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_vae(shape),
            text_encoder=_text_encoder(shape),
            tokenizer=_tokenizer(folder / "tokenizer"),
            unet=_unet(shape, unet_options),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            for weight in part.parameters():
                weight.data = weight.data.to(dtype)
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet(shape: dict, options: dict):
    from diffusers import UNet2DConditionModel

    levels = len(shape["unet"])
    return UNet2DConditionModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": shape["unet"],
            "layers_per_block": shape["layers"],
            "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            "cross_attention_dim": shape["width"],
            "attention_head_dim": shape["heads"],
            "norm_num_groups": shape["groups"],
            "sample_size": 8,
            **options,
        }
    )


def _vae(shape: dict):
    from diffusers import AutoencoderKL

    levels = len(shape["vae"])
    return AutoencoderKL(
        block_out_channels=shape["vae"],
        layers_per_block=shape["layers"],
        latent_channels=4,
        norm_num_groups=shape["groups"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=0.4,
    )


def _text_encoder(shape: dict):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=shape["width"],
            intermediate_size=2 * shape["width"],
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def _tokenizer(folder: Path):
    """CLIP's tokenizer over single bytes: every text has its own tokens."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    vocabulary = {text: number for number, text in enumerate(letters + [f"{letter}</w>" for letter in letters])}
    vocabulary.update({START: 512, END: 513})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
            }
        ),
        encoding="utf-8",
    )
    return CLIPTokenizer.from_pretrained(folder)


def _byte_letters() -> list:
    """GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(hidden))]


def _scheduler():
    """Stable Diffusion 1.x's own noise schedule."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_tiny_stable_diffusion(arguments.folder, arguments.seed, arguments.size))


if __name__ == "__main__":
    main()
