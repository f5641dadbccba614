"""Trains the pocket LDM from nothing and writes it as a Stable Diffusion 1.x folder.

    python -m domainbed_domainfusion.pocket.train_ldm --output DIR --seed 0

Digits are rendered in random styles (`pretraining`). A VAE is trained on them, then a U-Net and a text encoder together
on the VAE's latents, as in Rombach et al. 2022. This takes about 45 minutes on two CPU cores; `--scale 0.01` tries it
out.

    python -m domainbed_domainfusion.pocket.train_ldm --output DIR --images data/PACS --leave_out sketch

The same model of an image folder, without the environment that will be the test domain.
"""

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm, trange

from ..errors import InputError, exit_status
from ..files import write_atomically
from ..seeding import seed_of
from . import folder_images, ldm_folder, pretraining

RENDERS, VAE_STEPS, UNET_STEPS = 60_000, 2_400, 5_600
PROCESSES = 2
VAE_BATCH, UNET_BATCH = 24, 48  # per process
VAE_RATE, UNET_RATE = 1.5e-3, 1.5e-3  # peak learning rates of the one-cycle schedules
KL_WEIGHT, EDGE_WEIGHT, COLOUR_WEIGHT = 5e-4, 0.5, 1.5
EMPTY_PROMPTS, EMA_DECAY = 0.12, 0.999
SNAPSHOT_STEPS = 500
Losses = dict[str, list[float]]


def _optimiser(parameters: list, peak: float, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return optimiser, OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.1)


def _step(loss: torch.Tensor, parameters: list, optimiser: torch.optim.Optimizer, schedule: LRScheduler) -> None:
    """One optimiser step with the gradient averaged over the processes."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    distributed.all_reduce(gradient)
    gradient /= distributed.get_world_size()
    gradient *= (1 / gradient.norm().clamp(min=1.0)).item()  # clipped to norm 1
    offset = 0
    for parameter in parameters:
        parameter.grad.copy_(gradient[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
    optimiser.step()
    schedule.step()


def plain_attention(module: Any) -> None:
    """Use unfused attention: at 64 tokens on a CPU its backward pass is several times faster than the fused one's."""
    from diffusers.models.attention_processor import AttnProcessor

    module.set_attn_processor(AttnProcessor())


def to_model(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, 3, H, W) as float32 in [-1, 1], channels last."""
    return (images.float() / 127.5 - 1).to(memory_format=torch.channels_last)


def _edges(difference: torch.Tensor) -> torch.Tensor:
    """Mean absolute horizontal and vertical gradient of a difference of images (B, 3, H, W). It keeps strokes sharp."""
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def _colours(difference: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of 4x4 and 8x8 averages. Without it the latents' four channels hold no colours."""
    return F.avg_pool2d(difference, 4).abs().mean() + F.avg_pool2d(difference, 8).abs().mean()


def train_vae(vae: Any, images: torch.Tensor, steps: int, losses: Losses, snapshot: Callable[[], None]) -> None:
    """L1 + edges + colours + KL on images (N, 3, 32, 32) uint8; appends the L1, on [-1, 1], to losses["vae"].

    snapshot() is called every SNAPSHOT_STEPS.
    """
    plain_attention(vae.train())
    parameters = list(vae.parameters())
    optimiser, schedule = _optimiser(parameters, VAE_RATE, steps)
    bar = trange(steps, desc="VAE", mininterval=5, disable=distributed.get_rank() > 0)
    for step in bar:
        x = to_model(images[torch.randint(len(images), (VAE_BATCH,))])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        difference = y.float() - x
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        l1 = difference.abs().mean()
        loss = l1 + EDGE_WEIGHT * _edges(difference) + COLOUR_WEIGHT * _colours(difference) + KL_WEIGHT * kl
        _step(loss, parameters, optimiser, schedule)
        losses["vae"].append(l1.item())
        losses["kl"].append(kl.item())
        bar.set_postfix(l1=f"{np.mean(losses['vae'][-50:]):.4f}", kl=f"{kl.item():.2f}", refresh=False)
        if (step + 1) % SNAPSHOT_STEPS == 0:
            snapshot()
    vae.eval()


@torch.no_grad()
def encode_all(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and deviation of every image, each (N, 4, 8, 8) float32; the processes share the work."""
    latents = torch.zeros(2, len(images), 4, 8, 8)
    starts = range(distributed.get_rank() * 250, len(images), distributed.get_world_size() * 250)
    for start in tqdm(starts, desc="encode", mininterval=5, disable=distributed.get_rank() > 0):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(to_model(images[start : start + 250])).latent_dist
        latents[0, start : start + 250] = posterior.mean
        latents[1, start : start + 250] = posterior.std
    distributed.all_reduce(latents)
    return latents[0], latents[1]


@torch.no_grad()
def _update_average(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of the weights."""
    for slow, fast in zip(average.parameters(), module.parameters()):
        slow.lerp_(fast, 1 - decay)


def train_unet(
    parts: ldm_folder.Parts,
    latents: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    captions: tuple[str, ...],
    steps: int,
    losses: Losses,
    snapshot: Callable[[ldm_folder.Parts, int], None],
) -> ldm_folder.Parts:
    """Noise prediction (Ho et al. 2020, L_simple) on latents; returns the moving average of U-Net and text encoder.

    latents: posterior mean and deviation, each (N, 4, 8, 8); every use draws a new sample. labels: (N,).
    captions: as `pretraining.captions` makes them. snapshot(parts, step) is called every SNAPSHOT_STEPS.
    """
    unet, text_encoder = parts.unet.train(), parts.text_encoder.train()
    plain_attention(unet)
    average = parts._replace(unet=copy.deepcopy(unet).eval(), text_encoder=copy.deepcopy(text_encoder).eval())
    classes = (len(captions) - 1) // len(pretraining.TEMPLATES)
    tokens = torch.tensor(parts.tokenizer(list(captions), padding="max_length", truncation=True).input_ids)
    alphas = ldm_folder.make_scheduler().alphas_cumprod
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimiser, schedule = _optimiser(parameters, UNET_RATE, steps)
    bar = trange(steps, desc="U-Net", mininterval=5, disable=distributed.get_rank() > 0)
    for step in bar:
        batch = torch.randint(len(labels), (UNET_BATCH,))
        z = (latents[0][batch] + latents[1][batch] * torch.randn(UNET_BATCH, 4, 8, 8)) * parts.vae.config.scaling_factor
        prompt = torch.randint(len(pretraining.TEMPLATES), (UNET_BATCH,)) * classes + labels[batch]
        prompt[torch.rand(UNET_BATCH) < EMPTY_PROMPTS] = len(captions) - 1
        t, noise = torch.randint(len(alphas), (UNET_BATCH,)), torch.randn_like(z)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            words = text_encoder(tokens).last_hidden_state[prompt]
            predicted = unet(noisy, t, words).sample
        loss = F.mse_loss(predicted.float(), noise)
        _step(loss, parameters, optimiser, schedule)
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        _update_average(average.unet, unet, decay)
        _update_average(average.text_encoder, text_encoder, decay)
        losses["unet"].append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses['unet'][-100:]):.4f}", refresh=False)
        if (step + 1) % SNAPSHOT_STEPS == 0:
            snapshot(average, step + 1)
    return average


def versions() -> str:
    """The versions of Python and of the libraries that take part in the training."""
    import diffusers
    import matplotlib
    import scipy
    import transformers

    modules = (torch, diffusers, transformers, np, scipy, matplotlib)
    return ", ".join([f"Python {platform.python_version()}"] + [f"{m.__name__} {m.__version__}" for m in modules])


def _train_in_process(
    rank: int,
    rendezvous: str,
    output: str,
    seed: int,
    scale: float,
    images: torch.Tensor,
    labels: torch.Tensor,
    captions: tuple[str, ...],
    source: str,
    started: float,
) -> None:
    """The training in one process.

    All processes start from the same weights, draw their own minibatches and average their gradients; rank 0 saves.
    Each has one thread. Several threads would wait for each other at every operation, processes wait once per step.
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(seed_of("pocket LDM", seed))
    parts = ldm_folder.make_parts()
    for part in parts[:3]:
        part.to(memory_format=torch.channels_last)
    torch.manual_seed(seed_of("pocket LDM", seed, rank))
    losses: Losses = {"vae": [], "kl": [], "unet": []}
    seconds = {"render": time.time() - started}

    def save(average: ldm_folder.Parts, step: int) -> None:
        if rank > 0:
            return
        seconds["all"] = time.time() - started
        ldm_folder.save_folder(average, output)
        command = f"python -m {__package__}.train_ldm --output DIR --seed {seed} --scale {scale:g}{source}"
        record = {
            "command": command,
            "versions": versions(),
            "seed": seed,
            "scale": scale,
            "renders": len(images),
            "unet_steps_done": step,
            "latent_scaling_factor": parts.vae.config.scaling_factor,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "losses": {name: [round(value, 4) for value in values] for name, values in losses.items()},
        }
        write_atomically(Path(output) / "training.json", json.dumps(record))

    vae_steps, unet_steps = (max(2, round(steps * scale)) for steps in (VAE_STEPS, UNET_STEPS))
    train_vae(parts.vae, images, vae_steps, losses, lambda: save(parts, 0))
    seconds["vae"] = time.time() - started - seconds["render"]
    latents = encode_all(parts.vae, images)
    spread = (latents[0].var() + latents[1].square().mean()).sqrt().item()
    parts.vae.register_to_config(scaling_factor=round(1 / spread, 5))
    save(parts, 0)
    save(train_unet(parts, latents, labels, captions, unet_steps, losses, save), unet_steps)
    distributed.destroy_process_group()


def train(output: str, seed: int, scale: float, folder: Path | None = None, left_out: str = "") -> None:
    """The whole training. Every snapshot, and the end, writes the moving average of the weights to `output`.

    folder, left_out: train on an image folder without one of its environments, in place of rendered digits.
    Raises InputError as `folder_images.read_folder` does.
    """
    started = time.time()
    source, captions = "", pretraining.prompts()
    if folder is None:
        arrays = pretraining.render_many(seed, 0, max(500, round(RENDERS * scale)))
    else:
        arrays, names = folder_images.read_folder(folder, left_out)
        captions = pretraining.captions(folder_images.TEMPLATES, names)
        source = f" --images DATA/{folder.name} --leave_out {left_out}"
    images, labels = (torch.from_numpy(array).share_memory_() for array in arrays)
    with tempfile.TemporaryDirectory() as temporary:
        multiprocessing.spawn(
            _train_in_process,
            nprocs=PROCESSES,
            args=(str(Path(temporary) / "rendezvous"), output, seed, scale, images, labels, captions, source, started),
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="this fraction of all renders and steps")
    parser.add_argument("--images", type=Path, help="a folder environment/class/image, in place of rendered digits")
    parser.add_argument("--leave_out", help="the environment of --images that will be the test domain: it is not read")
    arguments = parser.parse_args()
    if (arguments.images is None) != (arguments.leave_out is None):
        raise InputError("--images and --leave_out go together: name the folder and the environment that is left out.")
    if not 0 < arguments.scale <= 10:
        raise InputError(f"--scale is {arguments.scale}: give a fraction above 0, 1 for the whole training.")
    train(arguments.output, arguments.seed, arguments.scale, arguments.images, arguments.leave_out or "")


if __name__ == "__main__":
    sys.exit(exit_status(main))
