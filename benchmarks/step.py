"""R5: images per second of DomainFusion's step with its generation, compared with `naive` and with ERM's step.

One whole interval is timed: Itv epochs of one step each. One epoch begins with a round that replaces every training
image. So generation has the same share of a step as with a dataset of any other size.
"""

from statistics import median

from domainbed_domainfusion.hosting import host

from .host_run import HostRun
from .models import Model
from .naive import NaiveDomainFusion
from .results import Results, Table, shown
from .timing import Spread, interleaved, paired_ratio

OURS, NAIVE, ERM = "DomainFusion", "Algorithm 1, naive", "ERM"
BACKBONES = {"sd1": "resnet50"}
SMALL_BACKBONE = "resnet10t"  # the quickstart's
BATCHES = {"tiny": 2, "sd1": 4}  # images per domain and step, for models that are too slow for the default


def run(model: Model, device: str, dtype: str, repeats: int) -> Results:
    """The suite: DomainFusion's defaults on the model's dataset, three training domains."""
    hparams = hparams_for(model, dtype)
    steps, images = hparams["generation_interval"], hparams["generation_interval"] * 3 * hparams["batch_size"]
    ours, erm = (HostRun(name, model, hparams, device) for name in ("DomainFusion", "ERM"))
    naive = NaiveDomainFusion(model, HostRun("ERM", model, hparams, device), hparams, device)
    shares: list[dict] = []
    methods = {
        OURS: lambda: shares.append(_shares(ours.steps(steps))),
        NAIVE: naive.interval,
        ERM: lambda: erm.steps(steps),
    }
    results = Results(
        "step",
        model.name,
        {
            "device": device,
            "dtype": dtype,
            "images per step": 3 * hparams["batch_size"],
            "classifier": hparams["backbone"],
            "repeats": repeats,
        },
    )
    results.seconds = interleaved(methods, repeats, device, "step")
    results.tables = [_rates(results.seconds, images, steps)]
    counted = shares[1:]  # the first was the warm-up
    results.notes = [
        f"Of DomainFusion's seconds {_percent(counted, results.seconds[OURS], 'generation')} % are "
        f"generation, {_percent(counted, results.seconds[OURS], 'ld')} % Latent Distillation."
    ]
    results.ratios = {
        "R5": paired_ratio(results.seconds[NAIVE], results.seconds[OURS]),
        "step_vs_ERM": paired_ratio(results.seconds[OURS], results.seconds[ERM]),
    }
    return results


def hparams_for(model: Model, dtype: str) -> dict:
    """DomainFusion's defaults, with an untrained classifier and without a gallery."""
    hparams = host.hparams_registry.default_hparams("DomainFusion", model.dataset)
    hparams.update(
        model.hparams(),
        backbone=BACKBONES.get(model.name, SMALL_BACKBONE),
        pretrained=False,
        ldm_dtype=dtype,
        gallery=0,
    )
    hparams["batch_size"] = BATCHES.get(model.name, hparams["batch_size"])
    return hparams


def _shares(updates: list[dict]) -> dict[str, float]:
    """Seconds of generation and of Latent Distillation, from the values that `update` returns."""
    if sum(update["generated_images"] > 0 for update in updates) != 1:
        raise AssertionError("an interval must contain one round of generation")
    return {part: sum(update[f"{part}_seconds"] for update in updates) for part in ("generation", "ld")}


def _percent(shares: list[dict], seconds: list[float], part: str) -> int:
    return round(100 * median(share[part] / taken for share, taken in zip(shares, seconds)))


def _rates(seconds: dict, images: int, steps: int) -> Table:
    table = Table(["method", "seconds per step", "images/s", f"÷ {NAIVE}"])
    for name, taken in seconds.items():
        table.rows.append(
            [
                name,
                shown(Spread.of([each / steps for each in taken]), 3),
                shown(Spread.of([images / each for each in taken])),
                shown(paired_ratio(seconds[NAIVE], taken)),
            ]
        )
    return table
