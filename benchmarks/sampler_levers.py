"""What makes candidates cheaper, and what it changes: `python -m benchmarks.sampler_levers --data_dir data --output
FILE.json`.

The same candidates of training images of DigitStyles are made with each lever and without any. A classifier that was
trained as ERM chooses among them. So each lever has its evaluations and seconds, how near its images come to those
without it, and how many choices of content and style stay the same.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import exit_status
from domainbed_domainfusion.generated.generation import Generation
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pixels import psnr

from .arguments import arguments
from .early_choice import CANDIDATES, DATASET, SCHEDULES, generated, judged_images, seeds_of
from .results import Results, Table, keep_and_print, shown
from .timing import interleaved, paired_ratio

LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "reuse_interval 2": {"reuse_interval": 2},
    "reuse_interval 3": {"reuse_interval": 3},
    "guidance_interval 0.5": {"guidance_interval": 0.5},
    "guidance_agreement 0.991": {"guidance_agreement": 0.991},
    "reuse_interval 2, guidance_interval 0.5": {"reuse_interval": 2, "guidance_interval": 0.5},
    "reuse_interval 2, guidance_agreement 0.991": {"reuse_interval": 2, "guidance_agreement": 0.991},
}
TIMED, ROUNDS = 16, 5  # images of a timed batch; rounds
COLUMNS = ["steps", "lever", "evaluations", "seconds", "PSNR", "same content", "same style"]


def run(data_dir: Path, images: int, training_steps: int) -> Results:
    """Compare the levers on so many training images. Raises InputError without images or without training."""
    names, judge, x, y = judged_images(data_dir, images, training_steps)
    results = Results("sampler_levers", f"{DATASET}, pocket", {"images": images, "candidates": CANDIDATES})
    results.notes.append(
        "Evaluations are those of the whole U-Net. Seconds are those of a batch of candidates, without choosing. Both "
        "are shares of those without a lever. PSNR: the median over the candidates, to the one without a lever, in "
        "dB. By chance a choice would be the same in a third of the images."
    )
    for schedule in SCHEDULES:
        hparams = {**host.hparams_registry.default_hparams("DomainFusion", DATASET), **schedule}
        hparams |= {"candidates": CANDIDATES, "sampling_strategy": True}
        model = PromptedModel.load(hparams, names, torch.device("cpu"))
        samplers = {name: CandidateSampler.of(model, {**hparams, **lever}) for name, lever in LEVERS.items()}
        timed = x[:TIMED], y[:TIMED], seeds_of(min(TIMED, images))
        batches = {name: partial(sampler.sample, *timed) for name, sampler in samplers.items()}
        seconds = interleaved(batches, ROUNDS, "cpu", f"{hparams['denoising_steps']} steps")
        results.tables.append(_table(samplers, Judged(judge, hparams, x, y), seconds))
    return results


class Judged:
    """The images and the classifier that chooses."""

    def __init__(self, judge: Any, hparams: dict[str, Any], x: Tensor, y: Tensor) -> None:
        self.judge, self.hparams, self.x, self.y = judge, hparams, x, y

    def __call__(self, sampler: CandidateSampler) -> tuple[Tensor, Tensor, Tensor, int]:
        """Candidates (B, N, 3, S, S), the chosen ones' numbers for content and style (B,), and the evaluations."""
        content, style, evaluations = generated(Generation(sampler, self.judge, self.hparams), self.x, self.y)
        return sampler.sample(self.x, self.y, seeds_of(len(self.x))).images, content, style, evaluations


def _table(samplers: dict[str, CandidateSampler], judged: Judged, seconds: dict[str, list[float]]) -> Table:
    whole, content, style, evaluations = judged(samplers["none"])
    table = Table(COLUMNS)
    for name, sampler in samplers.items():
        made, its_content, its_style, its_evaluations = judged(sampler)
        near = psnr(made, whole).median().item()
        shares = (its_content == content).float().mean(), (its_style == style).float().mean()
        ratio = shown(paired_ratio(seconds[name], seconds["none"]))
        row = [str(sampler.evaluations), name, f"{100 * its_evaluations / evaluations:.0f} %", ratio, f"{near:.1f}"]
        table.rows.append([*row, *(f"{100 * share:.0f} %" for share in shares)])
    return table


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=60, help="training images (default: %(default)s)")
    parser.add_argument("--training_steps", type=int, default=150, help="of the classifier (default: %(default)s)")
    given = parser.parse_args()
    return keep_and_print(run(given.data_dir, given.images, given.training_steps), given.output, "sampler_levers")


if __name__ == "__main__":
    sys.exit(exit_status(main))
