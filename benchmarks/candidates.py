"""R3, R4 and R6: candidates per second, compared with diffusers' pipeline at our settings and at its defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from domainbed_domainfusion.diffusion.candidates import CandidateSampler

from .models import Model
from .references import Pipeline
from .results import Results, Table, shown
from .timing import Spread, interleaved, paired_ratio

SHIPPED, PER_IMAGE, DEFAULTS = "ours as shipped", "pipeline, a call per image", "pipeline at its defaults"
ONE_BATCH = "pipeline, one call for the batch"
INTERVAL = "ours, guidance in the first half"
ENCODING = "ours, encoding the sources alone"  # a round would save it if it began at the latents of the last one
OTHER_SOLVERS = {"ours, PNDM": "pndm", "ours, DPM-Solver++ 2M": "dpmsolver++"}
CALLS = {"tiny": 3, "pocket": 12, "sd1": 3}  # images of the pipeline's one-per-call methods in each round
PEAK = 790e12  # FLOP/s, dense bfloat16 of an H200


@dataclass
class Method:
    """A method that generates `count` candidates, and the number of U-Net calls for each."""

    run: Callable[[], Any]
    count: int
    evaluations: int
    guided: int  # the U-Net calls with guidance, which have two rows per image


def run(model: Model, device: str, dtype: str, repeats: int, compiled: str | None = None) -> Results:
    """The suite. All methods have the same image size and guidance scale. The table gives their U-Net calls.

    compiled: "kernels" or "cuda_graphs" runs our sampler with torch.compile, which compiles in the warm-up round. None
    does not compile.
    """
    methods = _methods(model, device, dtype)
    on_gpu = torch.device(device).type == "cuda"
    flop = _flop(methods[SHIPPED]) if on_gpu else 0  # before compiling, which hides operators
    if compiled:
        model.load(device, dtype)[0].compile(cuda_graphs=compiled == "cuda_graphs")
    results = Results(
        "candidates",
        model.name,
        {
            "device": device,
            "dtype": dtype,
            "batch": methods[SHIPPED].count,
            "compiled": compiled or "no",
            "repeats": repeats,
        },
    )
    results.seconds = interleaved({name: method.run for name, method in methods.items()}, repeats, device, "candidates")
    per_image = {name: [taken / methods[name].count for taken in results.seconds[name]] for name in methods}
    results.tables = [_rates(per_image, methods)]
    results.ratios["R3"] = paired_ratio(per_image[PER_IMAGE], per_image[SHIPPED])
    results.ratios["R3_same_batch"] = paired_ratio(per_image[ONE_BATCH], per_image[SHIPPED])
    results.ratios["R4"] = paired_ratio(per_image[DEFAULTS], per_image[SHIPPED])
    results.ratios["R4_guidance_interval"] = paired_ratio(per_image[DEFAULTS], per_image[INTERVAL])
    results.ratios["R3_encoding"] = paired_ratio(per_image[ENCODING], per_image[SHIPPED])
    if on_gpu:
        results.ratios["R6"] = Spread.of([flop / (PEAK * taken) for taken in results.seconds[SHIPPED]])
        results.notes.append(
            f"R6: {flop / methods[SHIPPED].count / 1e12:.2f} TFLOP per candidate, against 790 TFLOP/s."
        )
    return results


def _methods(model: Model, device: str, dtype: str) -> dict[str, Method]:
    ldm, prompts = model.load(device, dtype)
    hparams = model.hparams()
    per_source = hparams["candidates"]
    sources = {"tiny": 2, "sd1": 1}.get(model.name) if device == "cpu" else None
    sources = sources or hparams["generation_batch"]
    images, labels = model.images(sources)
    seeds = torch.arange(sources * per_source).view(sources, per_source).tolist()

    def ours(**changed) -> Method:
        settings = {
            "steps": hparams["denoising_steps"],
            **{
                name: hparams[name]
                for name in ("strength", "guidance_scale", "scheduler", "timestep_spacing", "guidance_interval")
            },
            **changed,
        }
        sampler = CandidateSampler(ldm, prompts, **settings)
        return Method(
            lambda: sampler.sample(images, labels, seeds), sources * per_source, sampler.evaluations, sampler.guided
        )

    own = Pipeline(model, device, dtype)
    matched = own.with_scheduler("DDIMScheduler", timestep_spacing=hparams["timestep_spacing"], clip_sample=False)
    options = {
        "num_inference_steps": hparams["denoising_steps"],
        "strength": hparams["strength"],
        "guidance_scale": hparams["guidance_scale"],
    }
    calls = [each.repeat_interleave(per_source, 0) for each in (images, labels)] + [
        [seed for row in seeds for seed in row]
    ]
    few = [each[: CALLS[model.name]] for each in calls]

    def theirs(pipeline: Pipeline, make: Callable, arguments: list, **options) -> Method:
        pipeline(*(each[:1] for each in few), **options)
        return Method(
            lambda: make(*arguments, **options), len(arguments[0]), pipeline.evaluations, pipeline.evaluations
        )

    methods = {
        SHIPPED: ours(),
        PER_IMAGE: theirs(matched, matched.one_at_a_time, few, **options),
        ONE_BATCH: theirs(matched, matched, calls, **options),
        DEFAULTS: theirs(own, own.one_at_a_time, few),
        INTERVAL: ours(guidance_interval=0.5),
        ENCODING: Method(partial(torch.no_grad()(ldm.encode), images), sources * per_source, evaluations=0, guided=0),
        **{name: ours(scheduler=solver) for name, solver in OTHER_SOLVERS.items()},
    }
    if not methods[SHIPPED].evaluations == methods[PER_IMAGE].evaluations == methods[ONE_BATCH].evaluations:
        raise AssertionError("R3 must compare equal numbers of U-Net evaluations")
    return methods


def _rates(per_image: dict, methods: dict[str, Method]) -> Table:
    table = Table(["method", "U-Net calls", "of them guided", "candidates/s", f"÷ {PER_IMAGE}"])
    for name, method in methods.items():
        rate = Spread.of([1 / taken for taken in per_image[name]])
        table.rows.append(
            [
                name,
                str(method.evaluations),
                str(method.guided),
                shown(rate),
                shown(paired_ratio(per_image[PER_IMAGE], per_image[name])),
            ]
        )
    return table


def _flop(method: Method) -> int:
    """FLOP of one run of the method. A multiply-add counts as 2."""
    with FlopCounterMode(display=False) as counter:
        method.run()
    return counter.get_total_flops()
