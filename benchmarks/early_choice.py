"""What an early choice changes: `python -m benchmarks.early_choice --data_dir data --output FILE.json`.

A classifier is trained as ERM on three domains of DigitStyles. Then content and style are chosen for some of the
training images after each possible number of steps, and the choices are compared with those among the whole candidates.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.evaluations import COUNT
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import InputError, exit_status
from domainbed_domainfusion.generated.generation import Generated, Generation, Judge
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pixels import PixelRange
from domainbed_domainfusion.seeding import seed_of

from .arguments import arguments
from .host_run import HostData
from .results import Results, Table, keep_and_print

DATASET, TEST_ENV, BATCH = "DigitStyles", 3, 16
EPOCH = 75  # steps; an in-split has as many minibatches
CLASSIFIER = {"backbone": "resnet10t", "pretrained": False, "batch_size": BATCH}
CANDIDATES, AT_ONCE = 3, 32  # of each image; images in a batch of generation
#: The whole schedule and the share of it that is run: the digits' defaults, and those of 320 pixels.
SCHEDULES = ({"denoising_steps": 4, "strength": 1.0}, {"denoising_steps": 12, "strength": 0.8})
COLUMNS = ["steps", "choice after", "same content", "same style", "both the same", "evaluations"]


def trained_judge(data: HostData, steps: int) -> Judge:
    """θ after so many steps of ERM, in eval mode."""
    hparams = {**host.hparams_registry.default_hparams("ERM", DATASET), **CLASSIFIER}
    algorithm = data.built("ERM", hparams)
    for _ in range(steps):
        algorithm.update(data.minibatches())
    return Judge.of(algorithm.eval(), PixelRange.of(data.dataset.input_shape, data.dataset))


def judged_images(data_dir: Path, images: int, training_steps: int) -> tuple[list[str], Judge, Tensor, Tensor]:
    """Class names, θ, and training images with labels, as `training_images` gives them. Raises InputError as `run`."""
    if images < 1 or training_steps < 1:
        raise InputError("--images and --training_steps must be at least 1.")
    torch.manual_seed(0)
    dataset = host.datasets.get_dataset_class(DATASET)(str(data_dir), [TEST_ENV], {})
    data = HostData(dataset, BATCH, "cpu", epoch=EPOCH, test_env=TEST_ENV)
    return list(dataset.CLASS_NAMES), trained_judge(data, training_steps), *data.training_images(images)


def seeds_of(count: int) -> list[list[int]]:
    """One for each candidate of so many images."""
    return [[seed_of("early choice", i, j) for j in range(CANDIDATES)] for i in range(count)]


def generated(generation: Generation, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """The candidates that give content and style, (B,) each, and the evaluations of the U-Net that it took."""
    before, seeds = COUNT.number, seeds_of(len(x))
    made: list[Generated] = []
    for start in range(0, len(x), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        made.append(generation(x[part], y[part], seeds[part]))
    content, style = (torch.cat([getattr(each, name) for each in made]) for name in ("content", "style"))
    return content, style, COUNT.number - before


def run(data_dir: Path, images: int, training_steps: int) -> Results:
    """Compare the choices on so many training images. Raises InputError without images or without training."""
    names, judge, x, y = judged_images(data_dir, images, training_steps)
    results = Results("early_choice", f"{DATASET}, pocket", {"images": images, "candidates": CANDIDATES})
    results.notes.append(
        "Shares of the images. By chance a choice would be the same in a third of them. Evaluations are those of the "
        "U-Net, as a share of those without an early choice."
    )
    for schedule in SCHEDULES:
        hparams = {**host.hparams_registry.default_hparams("DomainFusion", DATASET), **schedule}
        hparams |= {"candidates": CANDIDATES, "sampling_strategy": True, "early_choice": None}
        model = PromptedModel.load(hparams, names, torch.device("cpu"))
        sampler = CandidateSampler.of(model, hparams)
        content, style, whole = generated(Generation(sampler, judge, hparams), x, y)
        table = Table(COLUMNS)
        for steps in range(1, sampler.evaluations):
            early = Generation(sampler, judge, {**hparams, "early_choice": steps})
            early_content, early_style, evaluations = generated(early, x, y)
            same = early_content == content, early_style == style
            shares = [*(each.float().mean().item() for each in (*same, same[0] & same[1])), evaluations / whole]
            table.rows.append([str(sampler.evaluations), str(steps), *(f"{100 * share:.0f} %" for share in shares)])
        results.tables.append(table)
    return results


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=150, help="training images (default: %(default)s)")
    parser.add_argument("--training_steps", type=int, default=150, help="of the classifier (default: %(default)s)")
    given = parser.parse_args()
    results = run(given.data_dir, given.images, given.training_steps)
    return keep_and_print(results, given.output, "early_choice")


if __name__ == "__main__":
    sys.exit(exit_status(main))
