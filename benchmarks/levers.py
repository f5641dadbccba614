"""R8: seconds of DomainFusion's step with each lever that makes it cheaper, by those without, and by ERM's.

The settings are the paper's, also with the pocket model: three candidates, 9 steps and Latent Distillation. What the
levers change is measured elsewhere: `sampler_levers`, `early_choice`, `ld_variance`.
"""

from typing import Any

from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.hosting import hparams as table

from .host_run import HostRun
from .models import Model
from .results import Results, Table, shown
from .step import ERM, hparams_for
from .timing import Spread, interleaved, paired_ratio

NONE = "none"
KEPT = ("batch_size", "image_size", "lr", "generation_batch", "save_generated")  # of the model's own dataset


def levers_for(hparams: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → the hparams that the lever changes."""
    executed = int(hparams["denoising_steps"] * hparams["strength"])
    single = {
        "reuse_interval": {"reuse_interval": 2},
        "guidance_interval": {"guidance_interval": 0.5},
        "guidance_agreement": {"guidance_agreement": 0.991},
        "early_choice": {"early_choice": max(1, executed // 2)} if executed > 1 else {},
        "ld_interval": {"ld_interval": 4},
        "ld_gradient": {"ld_gradient": "sds"},
        "ld_antithetic": {"ld_draws": 2, "ld_antithetic": True, "ld_stratified": True},
        "bfloat16": {"ldm_dtype": "bfloat16"},
    }
    together = ("reuse_interval", "guidance_interval", "ld_interval", "bfloat16")
    return {NONE: {}, **single, "together": {name: value for each in together for name, value in single[each].items()}}


def paper_settings() -> dict[str, Any]:
    """The method's hparams that have other defaults for digits, at their defaults for the paper's datasets."""
    paper, digits = (host.hparams_registry.default_hparams("DomainFusion", name) for name in ("PACS", "DigitStyles"))
    names = (row.name for row in table.DOMAINFUSION if row.name not in KEPT)
    return {name: paper[name] for name in names if paper[name] != digits[name]}


def run(model: Model, device: str, dtype: str, repeats: int) -> Results:
    """The suite, on three training domains; one interval is timed, as in `step`."""
    hparams = {**hparams_for(model, dtype), **paper_settings()}
    steps, levers = hparams["generation_interval"], levers_for(hparams)
    runs = {name: HostRun("DomainFusion", model, {**hparams, **lever}, device) for name, lever in levers.items()}
    methods = {name: lambda each=each: each.steps(steps) for name, each in runs.items()}
    erm = HostRun(ERM, model, hparams, device)
    settings = {"device": device, "dtype": dtype, "images per step": 3 * hparams["batch_size"], "repeats": repeats}
    results = Results("levers", model.name, settings)
    results.seconds = interleaved({**methods, ERM: lambda: erm.steps(steps)}, repeats, device, "levers")
    table = Table(["lever", "hparams", "seconds per step", "÷ without", "÷ ERM"])
    for name, lever in levers.items():
        taken = results.seconds[name]
        without = paired_ratio(taken, results.seconds[NONE])
        written = ", ".join(f"{hparam} {value}" for hparam, value in lever.items())
        per_step = shown(Spread.of([each / steps for each in taken]), 3)
        table.rows.append([name, written, per_step, shown(without), shown(paired_ratio(taken, results.seconds[ERM]))])
        if name != NONE:
            results.ratios[f"R8_{name}"] = without
    results.tables = [table]
    return results
