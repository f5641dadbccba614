"""Latent Distillation with a distilled encoder in the VAE's place: what it saves, and how far its gradient is off.
`python -m benchmarks.ld_encoder --data_dir data --output FILE.json`.

The coefficients a_i of the same training images are computed with the VAE's encoder and with the hparam `ld_encoder`,
with the same timesteps and noise. Without --encoder an encoder is distilled from the VAE on training images first. With
--ldm random the full-size architectures are timed with random weights; then there is nothing to compare but seconds.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from domainbed_domainfusion.diffusion.corruption import corrupt
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import InputError, exit_status
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting.ld_presets import LD_PRESETS
from domainbed_domainfusion.seeding import generator_of, seed_of

from . import models
from .arguments import arguments
from .host_run import HostData
from .results import Results, Table, keep_and_print, shown
from .timing import interleaved, paired_ratio

PRESETS = ("mean", "score", "guidance")
CONFIDENCES = 0.1, 0.95  # the images' p lie evenly between them
TIMED, ROUNDS = {"pocket": 24, "random": 1}, 5  # images of a timed call; rounds
DISTILLED_WIDTH, DISTILLED_BATCH, LEARNING_RATE = 24, 64, 2e-3
ERRORS = ["reading", "cosine", "same sign", "error by one draw's chance"]
COSTS = ["reading", "VAE", "ld_encoder", "ratio"]


class Compared(NamedTuple):
    """The coefficients of some images with the VAE's encoder and with `encoder`."""

    model: PromptedModel
    encoder: str
    hparams: dict[str, Any]
    x: Tensor
    y: Tensor

    def coefficients(self, preset: str, encoder: str | None, number: int = 0) -> Tensor:
        """a (B,) of one set of random numbers; the same number is the same set."""
        hparams = {**self.hparams, **LD_PRESETS[preset], "ld_encoder": encoder, "ld_batch": len(self.x)}
        p = torch.linspace(*CONFIDENCES, len(self.x))
        seeds = [seed_of("ld encoder", number, i) for i in range(len(self.x))]
        return LatentDistillation.of(self.model, hparams).coefficients(self.x, self.y, p, seeds)[1]


def compared_with(theirs: Tensor, ours: Tensor) -> tuple[float, float, float]:
    """Of coefficients (sets, B): their cosine, the share with the same sign, and the root mean square of the difference
    by the standard deviation over the sets."""
    theirs, ours = theirs.double(), ours.double()
    cosine = torch.cosine_similarity(theirs.flatten(), ours.flatten(), dim=0).item()
    same = (theirs.sign() == ours.sign()).double().mean().item()
    error, chance = (ours - theirs).square().mean().sqrt(), theirs.var(0).mean().sqrt()
    return cosine, same, (error / chance).item()


def distil(ldm: LatentDiffusion, images: Tensor, steps: int, folder: Path) -> str:
    """An AutoencoderTiny in `folder`, whose encoder has learned the VAE's latents of corrupted images."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed_of("ld encoder", "weights") % 2**32)
    levels = ldm.scale_factor.bit_length()
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(DISTILLED_WIDTH,) * levels,
        decoder_block_out_channels=(1,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        latent_channels=ldm.latent_channels,
    )
    optimizer = torch.optim.Adam(tiny.encoder.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = generator_of("ld encoder", "training")
    for _ in tqdm(range(steps), desc="distilling the encoder", file=sys.stderr, disable=None):
        chosen = torch.randint(len(images), (DISTILLED_BATCH,), generator=generator)
        p = torch.rand(DISTILLED_BATCH, generator=generator)
        with torch.no_grad():
            x = corrupt(images[chosen], p, "contrast", [])
            latents = ldm.encode(x).float()
        loss = torch.nn.functional.mse_loss(tiny.encode(x).latents, latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    tiny.save_pretrained(folder)
    return str(folder)


def run(given: argparse.Namespace, scratch: Path) -> Results:
    """Measure. Raises InputError for an encoder that does not fit, and for less than 2 images or sets."""
    if given.images < 2 or given.sets < 2:
        raise InputError("--images and --sets must be at least 2.")
    cls = host.datasets.get_dataset_class(given.dataset)
    dataset = cls(str(given.data_dir), [given.test_env], {"data_augmentation": False})
    hparams = {**host.hparams_registry.default_hparams("DomainFusion", given.dataset), "ldm": given.ldm}
    data = HostData(dataset, given.images, "cpu", test_env=given.test_env)
    x, y = data.training_images(given.images)
    if hparams["image_size"] != x.shape[-1]:
        x = torch.nn.functional.interpolate(x, size=(hparams["image_size"],) * 2, mode="bicubic").clamp(-1, 1)
    model = PromptedModel.load(hparams, list(dataset.CLASS_NAMES), torch.device(given.device))
    results = Results("ld_encoder", given.ldm, {"dataset": given.dataset, "images": given.images, "sets": given.sets})
    encoder = given.encoder
    if encoder is None:
        images = torch.stack([image for split in data.in_splits for image, _ in split]) * 2 - 1
        encoder = distil(model.ldm, images, given.distil_steps, scratch)
        results.notes.append(f"The encoder was distilled from the VAE in {given.distil_steps} steps.")
    compared = Compared(model, encoder, hparams, x, y)
    tiny = model.ldm.tiny_encoder(encoder)
    theirs, ours = model.ldm.encode(x).float(), tiny.encode(x).float()
    results.notes.append(f"Latents: relative error {((ours - theirs).norm() / theirs.norm()).item():.3f}.")
    _add_errors(compared, given.sets, results)
    _add_costs(compared, given.device, results)
    return results


def run_random() -> Results:
    """Seconds of the full-size architectures alone."""
    from diffusers import AutoencoderTiny

    with models.opened("sd1") as sd1, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoencoderTiny().save_pretrained(folder)
        hparams = {**sd1.hparams(), "image_size": sd1.image_size, "ldm_dtype": "float32"}
        model = PromptedModel.load(hparams, sd1.class_names, torch.device("cpu"))
        results = Results("ld_encoder", "random", {"image size": sd1.image_size, "images": TIMED["random"]})
        _add_costs(Compared(model, folder, hparams, *sd1.images(TIMED["random"])), "cpu", results)
    return results


def _add_errors(compared: Compared, sets: int, results: Results) -> None:
    table = Table(ERRORS)
    for preset in PRESETS:
        numbers = tqdm(range(sets), desc=preset, file=sys.stderr, disable=None)
        found = [
            [compared.coefficients(preset, encoder, number) for encoder in (None, compared.encoder)]
            for number in numbers
        ]
        theirs, ours = (torch.stack(rows).cpu() for rows in zip(*found))
        cosine, same, error = compared_with(theirs, ours)
        table.rows.append([preset, f"{cosine:.3f}", f"{100 * same:.0f} %", f"{error:.2f}"])
    results.tables.append(table)
    results.notes.append(
        "a is computed twice with the same t and noise. Its error is a root mean square, by the standard deviation of "
        "a that one draw of t and noise leaves."
    )


def _add_costs(compared: Compared, device: str, results: Results) -> None:
    table, count = Table(COSTS), TIMED.get(results.model, len(compared.x))
    few = compared._replace(x=compared.x[:count], y=compared.y[:count])
    for preset in PRESETS:
        ways: dict[str, str | None] = {"VAE": None, "ld_encoder": compared.encoder}
        calls = {name: lambda e=encoder, p=preset: few.coefficients(p, e) for name, encoder in ways.items()}
        seconds = interleaved(calls, ROUNDS, device, preset)
        results.seconds |= {f"{preset}: {name}": taken for name, taken in seconds.items()}
        ratio = paired_ratio(seconds["ld_encoder"], seconds["VAE"])
        medians = [f"{sorted(seconds[name])[ROUNDS // 2]:.3f}" for name in ways]
        table.rows.append([preset, *medians, shown(ratio)])
        results.ratios[f"{preset}: seconds"] = ratio
    results.tables.append(table)


def main() -> int:
    parser = arguments(__doc__, data=None)
    parser.add_argument("--data_dir", type=Path, help="where DigitStyles is or will be, or the dataset's folder is")
    parser.add_argument("--ldm", default="pocket", help='as the hparam; or "random" (default: %(default)s)')
    parser.add_argument("--encoder", help="as the hparam ld_encoder, such as madebyollin/taesd; default: distilled")
    parser.add_argument("--dataset", default="DigitStyles", help="(default: %(default)s)")
    parser.add_argument("--test_env", type=int, default=3, help="whose images are not used (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=48, help="training images (default: %(default)s)")
    parser.add_argument("--sets", type=int, default=20, help="of random numbers (default: %(default)s)")
    parser.add_argument("--distil_steps", type=int, default=1000, help="(default: %(default)s)")
    given = parser.parse_args()
    if given.ldm != "random" and given.data_dir is None:
        raise InputError("--data_dir is needed, except with --ldm random.")
    with tempfile.TemporaryDirectory() as scratch:
        results = run_random() if given.ldm == "random" else run(given, Path(scratch))
    return keep_and_print(results, given.output, "ld_encoder")


if __name__ == "__main__":
    sys.exit(exit_status(main))
