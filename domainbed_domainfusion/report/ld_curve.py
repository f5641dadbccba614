"""`domainfusion ld-curve`: LD's coefficient a as a function of the confidence p, before any training.

a < 0 means that Latent Distillation raises the confidence in an image's class, a > 0 that it lowers it. Where the mean
of a turns from − to + lies a confidence that LD aims at. The same images are asked under the prompt of another class
too: LD knows the class only as far as the two curves differ. Ours.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets
from tqdm import tqdm

from ..errors import InputError
from ..files import write_atomically
from ..hosting import checks, host
from ..hosting import hparams as table
from ..hosting.ld_presets import LD_PRESETS, with_ld_preset
from ..runs.chosen_images import open_folders, read, turns
from ..seeding import generator_of, seed_of
from .coefficient_curve import CONFIDENCES, SPREAD, Curve


def write_ld_curve(data: Path, output: Path, given: dict[str, Any], images: int = 64, seed: int = 0) -> list[Path]:
    """Draw a(p) of the images in data/domain/class/image; return the files written: the picture and its numbers.

    given: hparams by the names of the table, over the defaults for image folders. images: per domain, spread evenly
    over its classes, chosen by the seed. All confidences of an image share its t, noise and corruption. Prints, for
    every domain, where LD raises the confidence. Raises InputError for a folder, hparams or an LDM that cannot be used.
    """
    if images < 2:
        raise InputError(f"--images is {images}, but must be 2 or more per domain.")
    folders = open_folders(data, "domain")
    domains = list(folders)
    classes = folders[domains[0]].classes
    hparams = with_ld_preset({**host.hparams_registry.default_hparams("DomainFusion", "PACS"), **given})
    table.check_values(hparams)
    names = checks.prompt_names_of_folders(hparams["class_names"], classes)
    distillation = _distillation(hparams, names)
    found: dict[tuple[str, str], list[torch.Tensor]] = {}  # (group, prompt) → a of each image, (CONFIDENCES,)
    with tqdm(total=2 * len(domains) * len(CONFIDENCES), desc="a(p)", unit="batch", disable=None) as progress:
        for domain, folder in folders.items():
            chosen = _chosen(folder, images, seed, domain)
            x = read([folder.samples[index][0] for index in chosen], hparams["image_size"])
            labels = torch.tensor([folder.targets[index] for index in chosen])
            seeds = [seed_of(seed, "ld-curve", domain, index) for index in chosen]
            for prompt, asked in (("matched", labels), ("mismatched", _others(labels, len(classes), seeds))):
                a = _coefficients(distillation, x, asked, seeds, hparams["ld_stratified"], progress)
                found.setdefault((domain, prompt), []).extend(a)
                for label, of_image in zip(labels.tolist(), a):
                    found.setdefault((names[label], prompt), []).append(of_image)
    curves = [_curve(group, prompt, torch.stack(a)) for (group, prompt), a in found.items()]
    return _write(output, curves, domains, hparams, images, seed)


def _distillation(hparams: dict[str, Any], names: list[str]) -> Any:
    from ..diffusion.distillation import LatentDistillation  # here, because diffusers takes seconds to import
    from ..diffusion.prompted import PromptedModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LatentDistillation.of(PromptedModel.load(hparams, names, device), hparams)


def _chosen(folder: datasets.ImageFolder, images: int, seed: int, domain: str) -> list[int]:
    """Indices of at most so many images, one class after the other in turn, in a seeded order within each class."""
    order = torch.randperm(len(folder), generator=generator_of(seed, "ld-curve", domain)).tolist()
    labels = [folder.targets[index] for index in order]
    return [index for _, _, index in sorted(zip(turns(labels), labels, order))[:images]]


def _others(labels: torch.Tensor, classes: int, seeds: Sequence[int]) -> torch.Tensor:
    """Another class for each image, by its seed."""
    steps = torch.tensor([1 + seed % (classes - 1) for seed in seeds])
    return (labels + steps) % classes


def _coefficients(
    distillation: Any, x: torch.Tensor, labels: torch.Tensor, seeds: list[int], stratified: bool, progress: tqdm
) -> list[torch.Tensor]:
    """a of each image over CONFIDENCES."""
    columns = []
    for p in CONFIDENCES:
        _, a = distillation.coefficients(x, labels, torch.full((len(x),), p), seeds, stratified)
        columns.append(a.float().cpu())
        progress.update()
    return list(torch.stack(columns, 1))


def _curve(group: str, prompt: str, a: torch.Tensor) -> Curve:
    """a: (images, CONFIDENCES)."""
    low, high = (a.quantile(share, 0).tolist() for share in SPREAD)
    return Curve(group, prompt, len(a), a.mean(0).tolist(), low, high, (a < 0).float().mean(0).tolist())


def _write(
    output: Path, curves: list[Curve], domains: list[str], hparams: dict[str, Any], images: int, seed: int
) -> list[Path]:
    from .figures.coefficient_panels import draw_curves  # here, because matplotlib takes seconds to import
    from .figures.drawing import save

    reading = {name: hparams[name] for name in ("ldm", "image_size", "ld_corruption", "ld_draws", "ld_stratified")}
    reading.update({name: hparams[name] for name in ("ld_preset", *LD_PRESETS["mean"])})
    index = {
        "hparams": reading,
        "images": images,
        "seed": seed,
        "confidences": CONFIDENCES,
        "spread": SPREAD,
        "curves": [{**asdict(curve), "raised": curve.raised} for curve in curves],
    }
    numbers = output.with_suffix(".json")
    write_atomically(numbers, json.dumps(index, indent=1))
    figure = draw_curves(curves, domains, CONFIDENCES, reading)
    write_atomically(output, partial(save, figure))
    for curve in curves:
        if curve.group in domains and curve.prompt == "matched":
            print(f"{curve.group}: {_in_words(curve)}")
    return [output, numbers]


def _in_words(curve: Curve) -> str:
    """What LD does to the confidence of a group of images."""
    ranges = [f"{low:.2f} to {high:.2f}" for low, high in curve.raised]
    if not ranges:
        return "LD lowers the confidence at every p"
    if curve.raised == [(0.0, 1.0)]:
        return "LD raises the confidence at every p"
    return f"LD raises the confidence for p from {' and from '.join(ranges)}, and lowers it elsewhere"
