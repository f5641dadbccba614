"""Samples of the pocket LDM on one sheet, and the share of samples that a classifier reads correctly.

    python -m domainbed_domainfusion.pocket.sheets --ldm DIR

writes three files into the folder. samples.png shows text-to-image samples, one class per row, then image-to-image from
each environment of DigitStyles, a row of originals above a row of results. training_curve.png shows the losses.
README.md has the accuracy of a judge on both kinds of samples. The judge is a small CNN trained on renders in random
styles. Neither the judge nor the originals shown are used to train the LDM.
"""

import argparse
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm, trange

from ..errors import InputError, exit_status
from ..files import write_atomically
from ..seeding import generator_of
from . import CLASS_NAMES, digit_styles, pretraining
from .contact_sheet import write_sheet

PROMPT = "a photo of a {}"
STEPS, GUIDANCE, STRENGTHS = 10, 5.0, (0.6, 0.8, 0.95)
PER_CLASS, SHOWN = 20, 10
JUDGE_RENDERS, JUDGE_STEPS, JUDGE_SEED = 6_000, 900, 1_000_001


def load_pipelines(folder: str) -> tuple[Any, Any]:
    """diffusers' text-to-image and image-to-image pipelines of that folder, float32, DDIM."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    text_pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False, torch_dtype=torch.float32
    )
    text_pipeline.scheduler = DDIMScheduler.from_config(text_pipeline.scheduler.config)
    text_pipeline.set_progress_bar_config(disable=True)
    image_pipeline: Any = StableDiffusionImg2ImgPipeline(**text_pipeline.components, requires_safety_checker=False)
    image_pipeline.set_progress_bar_config(disable=True)
    return text_pipeline, image_pipeline


def _to_uint8(images: torch.Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


@torch.no_grad()
def text_to_image(text_pipeline: Any, per_class: int, seed: int = 0) -> np.ndarray:
    """(10 * per_class, 3, 32, 32) uint8, class after class."""
    pictures = []
    for name in tqdm(CLASS_NAMES, desc="text-to-image"):
        generators = [generator_of("sheet", seed, name, n) for n in range(per_class)]
        made = text_pipeline(
            [PROMPT.format(name)] * per_class,
            height=32,
            width=32,
            num_inference_steps=2 * STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="pt",
        ).images
        pictures.append(_to_uint8(made))
    return np.concatenate(pictures)


@torch.no_grad()
def image_to_image(
    image_pipeline: Any, originals: np.ndarray, digits: np.ndarray, strength: float, seed: int = 0
) -> np.ndarray:
    """Each of the originals (n, 3, 32, 32) uint8 changed once, prompted by its digit (n,); STEPS U-Net evaluations."""
    generators = [generator_of("sheet", seed, "image", n) for n in range(len(originals))]
    made = image_pipeline(
        [PROMPT.format(CLASS_NAMES[digit]) for digit in digits],
        image=torch.from_numpy(originals).float() / 255,
        strength=strength,
        generator=generators,
        num_inference_steps=round(STEPS / strength),
        guidance_scale=GUIDANCE,
        output_type="pt",
    ).images
    return _to_uint8(made)


def train_judge() -> torch.nn.Module:
    """A small CNN that reads digits, trained on renders in all styles with its own seed."""
    images, digits = map(torch.from_numpy, pretraining.render_many(JUDGE_SEED, 0, JUDGE_RENDERS))
    torch.manual_seed(JUDGE_SEED)
    layers: list[torch.nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        layers += [
            torch.nn.Conv2d(channels, width, 3, padding=1),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        ]
        channels = width
    judge = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(2048, 10))
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=JUDGE_STEPS)
    for _ in trange(JUDGE_STEPS, desc="judge", mininterval=5):
        batch = torch.randint(len(images), (96,))
        loss = F.cross_entropy(judge(images[batch].float() / 127.5 - 1), digits[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def accuracy(judge: torch.nn.Module, images: np.ndarray, digits: np.ndarray) -> float:
    """The judge's accuracy on images (n, 3, 32, 32) uint8 of these digits (n,)."""
    return (judge(torch.from_numpy(images).float() / 127.5 - 1).argmax(1).numpy() == digits).mean().item()


def judge_folder(folder: str) -> dict[str, float]:
    """Write samples.png into the folder; return the judge's accuracy on renders, originals and samples."""
    judge = train_judge()
    text_pipeline, image_pipeline = load_pipelines(folder)
    rows: list[np.ndarray] = []
    scores = {"renders it was not trained on": accuracy(judge, *pretraining.render_many(JUDGE_SEED + 1, 0, 1000))}
    made = text_to_image(text_pipeline, PER_CLASS)
    rows.append(made.reshape(10, PER_CLASS, *made.shape[1:])[:, :SHOWN].reshape(-1, *made.shape[1:]))
    scores["text-to-image"] = accuracy(judge, made, np.repeat(np.arange(10), PER_CLASS))
    # The last images of every environment. The choice does not matter: the LDM has seen none of them.
    count = 10 * PER_CLASS
    digits = digit_styles.labels()[-count:]
    originals = {"H": digit_styles.handwritten()[-count:]}
    for name in digit_styles.LOOKS:
        last = range(10 * digit_styles.PER_CLASS - count, 10 * digit_styles.PER_CLASS)
        originals[name] = np.stack([digit_styles.render(name, index) for index in last])
    for name, images in tqdm(originals.items(), desc="image-to-image"):
        scores[f"{name}: originals"] = accuracy(judge, images, digits)
        rows.append(images[:SHOWN])
        for strength in STRENGTHS:
            changed = image_to_image(image_pipeline, images, digits, strength)
            scores[f"{name}: image-to-image, strength {strength}"] = accuracy(judge, changed, digits)
            rows.append(changed[:SHOWN])
    write_sheet(np.concatenate(rows), SHOWN, str(Path(folder) / "samples.png"))
    return scores


def draw_curve(record: dict, path: str) -> None:
    """The two loss curves of a training record, each step faint and its running mean on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2), (("vae", "VAE: L1 on [-1, 1]"), ("unet", "U-Net: noise prediction error"))
    ):
        values = np.array(record["losses"][name])
        window = max(1, len(values) // 50)
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        axes.plot(values, color="0.8", linewidth=0.5)
        axes.plot(np.arange(len(smooth)) + window - 1, smooth, color="tab:blue")
        axes.set(title=label, xlabel="step", yscale="log")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_atomically(path, content.getvalue())


def readme(record: dict, scores: dict[str, float]) -> str:
    """The README of the folder: its content, the command that made it, and the judge's accuracy on its samples."""
    tail = max(1, len(record["losses"]["unet"]) // 20)
    rows = "\n".join(f"| {name} | {100 * score:.1f} % |" for name, score in scores.items())
    return f"""# The pocket LDM

A latent diffusion model of digits at 32x32, in Stable Diffusion 1.x's folder format, trained from nothing on glyphs
rendered in random styles. It has seen no scikit-learn digit and no image of DigitStyles (see `../pretraining.py`).
Prompts it was trained with: {", ".join(f'"{template}"' for template in pretraining.TEMPLATES)},
and the empty one.

| | |
|---|---|
| command | `{record["command"]}` |
| seed | {record["seed"]} |
| renders | {record["renders"]:,} |
| steps | VAE {len(record["losses"]["vae"]):,}, U-Net {len(record["losses"]["unet"]):,} |
| wall time | {record["seconds"]["all"] / 60:.0f} minutes on two CPU cores, shared with other work |
| versions | {record["versions"]} |
| VAE, L1 on [-1, 1] | {np.mean(record["losses"]["vae"][-100:]):.3f} (last 100 steps) |
| U-Net, noise prediction error | {np.mean(record["losses"]["unet"][-tail:]):.3f} (last {tail} steps) |
| latent scaling factor | {record["latent_scaling_factor"]} (one over the latents' deviation, measured) |

`training.json` holds every loss, `training_curve.png` shows them. `samples.png`, top to bottom: text-to-image, a row a
digit, guidance {GUIDANCE:g}, {2 * STEPS} DDIM steps; then for H, P, O and A a row of originals and, below it, the same
images changed at strengths {", ".join(map(str, STRENGTHS))}, guidance {GUIDANCE:g}, {STEPS} DDIM evaluations each.

What a judge reads, {10 * PER_CLASS} images a row (a small CNN trained on {JUDGE_RENDERS:,} renders of its own seed; for
image-to-image the right answer is the original's digit, which is also the prompt's; the judge's renders are of the
same kind as the model's, so it reads them more easily than a stranger would). Information, not a goal of the training;
made by
`python -m domainbed_domainfusion.pocket.sheets --ldm domainbed_domainfusion/pocket/ldm`:

| images | read correctly |
|---|---|
{rows}
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ldm", required=True, help="a folder that train_ldm wrote")
    folder = Path(parser.parse_args().ldm)
    if not (folder / "training.json").is_file():
        raise InputError(f"{folder} holds no training.json: give --ldm a folder that train_ldm wrote.")
    record = json.loads((folder / "training.json").read_text())
    scores = judge_folder(str(folder))
    draw_curve(record, str(folder / "training_curve.png"))
    write_atomically(folder / "README.md", readme(record, scores))


if __name__ == "__main__":
    sys.exit(exit_status(main))
