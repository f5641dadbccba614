"""A round of generation on several devices beside one: `python -m benchmarks.devices --devices cpu cpu --output FILE`.

On GPUs: `--devices cuda:0 cuda:1 --dataset PACS`. The settings are the hparams' defaults for the dataset, the images
random. Both sides run in processes of `generated.device_pool`, in turns. The images of both are compared.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.prompted import PromptedModel
from domainbed_domainfusion.errors import exit_status
from domainbed_domainfusion.generated.dataset import Batch, candidate_seeds
from domainbed_domainfusion.generated.device_pool import DevicePool, devices_of
from domainbed_domainfusion.hosting.hparams import added_defaults

from .arguments import arguments
from .results import Results, Table, keep_and_print, shown
from .timing import Spread, interleaved, paired_ratio

CLASSES = 10


def main() -> int:
    parser = arguments(__doc__, data=None)
    parser.add_argument("--devices", nargs="+", required=True, help="as in the hparam generation_devices")
    parser.add_argument("--dataset", default="DigitStyles", help="whose defaults are used (default: %(default)s)")
    parser.add_argument("--ldm", help="another diffusion model")
    parser.add_argument("--images", type=int, default=256, help="of a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    given = parser.parse_args()
    hparams = {**added_defaults("DomainFusion", given.dataset), **({"ldm": given.ldm} if given.ldm else {})}
    results = run(hparams, given.devices, given.images, given.repeats)
    return keep_and_print(results, given.output, "devices", given.devices[0])


def run(hparams: dict[str, Any], devices: list[str], images: int, repeats: int) -> Results:
    """Time one round on the first device, and on all of them. hparams: of DomainFusion."""
    own = torch.device(devices[0])
    torch.set_num_threads(1)  # so every process of either pool has one
    names = [f"class {i}" for i in range(CLASSES)] if hparams["ldm"] != "pocket" else [str(i) for i in range(CLASSES)]
    sampler = CandidateSampler.of(PromptedModel.load(hparams, names, own), hparams)
    one = DevicePool(sampler, devices_of(devices[:1], own), hparams, names)
    several = DevicePool(sampler, devices_of(devices, own), hparams, names)
    made = {"1": _round(one, hparams, images), str(len(devices)): _round(several, hparams, images)}
    equal = all(torch.equal(a, b) for a, b in zip(*made.values()))

    methods = {
        "one device": lambda: _round(one, hparams, images),
        "all devices": lambda: _round(several, hparams, images),
    }
    seconds = interleaved(methods, repeats, str(own))
    results = Results("devices", hparams["ldm"], {"devices": " ".join(devices), "images": images, "repeats": repeats})
    results.seconds = seconds
    results.ratios["speed_up"] = paired_ratio(seconds["one device"], seconds["all devices"])
    table = Table(["a round on", "seconds", "speed-up"])
    table.rows.append([devices[0], shown(Spread.of(seconds["one device"])), "1"])
    table.rows.append([" ".join(devices), shown(Spread.of(seconds["all devices"])), shown(results.ratios["speed_up"])])
    results.tables.append(table)
    results.notes.append(f"The images of both are {'equal' if equal else 'NOT equal'}, bit for bit.")
    return results


def _round(pool: DevicePool, hparams: dict[str, Any], images: int) -> list[torch.Tensor]:
    """The candidates of all images, batch by batch."""
    pool.ahead(_batches(hparams, images))
    return [pool.sample(*batch).images.cpu() for batch in _batches(hparams, images)]


def _batches(hparams: dict[str, Any], images: int) -> Iterator[Batch]:
    size, length = hparams["image_size"], hparams["generation_batch"]
    for start in range(0, images, length):
        indices = range(start, min(start + length, images))
        x = torch.rand(len(indices), 3, size, size, generator=torch.Generator().manual_seed(start)) * 2 - 1
        y = torch.tensor([i % CLASSES for i in indices])
        yield x, y, [candidate_seeds(0, 0, i, 1, hparams["candidates"]) for i in indices]


if __name__ == "__main__":
    sys.exit(exit_status(main))
