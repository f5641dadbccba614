"""R1 and R2: time and memory of Latent Distillation's gradient, relative to its forward pass alone."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.forward_mode import Dual

from .models import Model
from .peak_memory import extra_peak, largest_batch
from .references import Derivatives, Draw, noise_predictions, stock_forward_mode
from .results import Results, Table, megabytes, shown
from .timing import Spread, interleaved, paired_ratio

BARE, JVP = "bare forward pass", "full, torch.func.jvp"
#: name in the table → (hparam ld_gradient, hparam ld_gradient_mode)
OURS = {
    "full, forward mode (ours)": ("full", "forward"),
    "sds, forward mode (ours)": ("sds", "forward"),
    "full, reverse mode": ("full", "reverse"),
    "sds, reverse mode": ("sds", "reverse"),
}
RATIOS = dict(zip(OURS, ("full", "sds", "full_reverse", "sds_reverse")))
BATCHES = {"cpu": 1, "cuda": 8}  # batch size of sd1; other models have the batch of a DomainFusion step
EXACT_IMAGES = {"sd1": 1}  # in float64 at 320 pixels one image already needs 12 GB
GPU_MEMORY = 24 * 10**9


def run(model: Model, device: str, dtype: str, repeats: int, batch: int | None = None) -> Results:
    """The suite. batch: the batch size. Default: BATCHES for sd1, else the three domains' minibatches of a step."""
    batch = batch or (BATCHES[device] if model.name == "sd1" else 3 * model.hparams()["batch_size"])
    results = Results("LD", model.name, {"device": device, "dtype": dtype, "batch": batch, "repeats": repeats})
    exactness = _exactness(model, device)
    methods = _methods(model, device, dtype, batch)
    peaks = {name: extra_peak(method, device) for name, method in methods.items()}
    results.seconds = interleaved(methods, repeats, device, "LD", warm_up=0)  # extra_peak was the warm-up
    results.tables = [_costs(results.seconds, peaks), exactness]
    _add_ratios(results, peaks)
    if torch.device(device).type == "cuda":
        _add_largest_batches(results, model, device, dtype)
    return results


def _methods(model: Model, device: str, dtype: str, batch: int) -> dict:
    """All methods, with the same images, confidences and draws."""
    ldm, prompts = model.load(device, dtype)
    images, labels = model.images(batch)
    images = images.to(device)
    p = torch.linspace(0.2, 0.9, batch, device=device)
    seeds = list(range(batch))
    draw = Draw.of(ldm, model.image_size, seeds, p.dtype)
    embeddings = prompts.matched(labels)

    def ours(gradient: str, mode: str):
        distillation = LatentDistillation(ldm, prompts, gradient=gradient, gradient_mode=mode, micro_batch=batch)
        return lambda: distillation.coefficients(images, labels, p, seeds)

    bare = torch.no_grad()(lambda: noise_predictions(ldm, images, p, embeddings, draw))
    return {
        BARE: bare,
        **{name: ours(*how) for name, how in OURS.items()},
        JVP: lambda: stock_forward_mode(ldm, images, p, embeddings, draw),
    }


def _costs(seconds: dict, peaks: dict) -> Table:
    table = Table(["method", "seconds", "÷ forward", "extra memory MB", "÷ forward"])
    for name, taken in seconds.items():
        table.rows.append(
            [
                name,
                shown(Spread.of(taken), 3),
                shown(paired_ratio(taken, seconds[BARE])),
                megabytes(peaks[name]),
                f"{peaks[name] / peaks[BARE]:.2f}",
            ]
        )
    return table


def _add_ratios(results: Results, peaks: dict) -> None:
    seconds = results.seconds
    for name, suffix in RATIOS.items():
        results.ratios[f"R1_{suffix}"] = paired_ratio(seconds[name], seconds[BARE])
    ours = next(iter(OURS))
    results.ratios["R1_full_vs_jvp"] = paired_ratio(seconds[JVP], seconds[ours])
    for name, suffix in RATIOS.items():
        results.ratios[f"R2_{suffix}"] = Spread.of([peaks[name] / peaks[BARE]])


def _add_largest_batches(results: Results, model: Model, device: str, dtype: str) -> None:
    """The largest batch size of each method on a 24 GB GPU, weights included."""
    table = Table(["method", "largest batch in 24 GB"])
    sizes = {}
    for name in OURS:
        sizes[name] = largest_batch(
            lambda size, name=name: _methods(model, device, dtype, size)[name](), GPU_MEMORY, device
        )
        table.rows.append([name, str(sizes[name])])
    results.tables.append(table)
    for gradient in ("full", "sds"):
        ours, reverse = (sizes[name] for name, how in OURS.items() if how[0] == gradient)
        results.ratios[f"R2_{gradient}_batch"] = Spread.of([ours / reverse])


def _exactness(model: Model, device: str) -> Table:
    """The errors of both gradients, compared with torch.func.jvp in float64."""
    count = EXACT_IMAGES.get(model.name, 16)
    (exact,) = _isolated_derivatives(model, device, "float64", ["stock"], count)
    low = ["bfloat16", "float16"] if torch.device(device).type == "cuda" else ["bfloat16"]
    table = Table(
        [
            "dtype",
            "mode",
            "images",
            "relative error full",
            "relative error sds",
            "least cosine full",
            "least cosine sds",
        ]
    )
    for dtype, modes in {"float32": ["forward", "reverse"], **{dtype: ["forward"] for dtype in low}}.items():
        for mode, found in zip(modes, _isolated_derivatives(model, device, dtype, modes, count)):
            errors = [
                f"{((a - b).norm() / b.norm()).item():.1e}"
                for a, b in ((found.full, exact.full), (found.sds, exact.sds))
            ]
            cosines = (
                ["–", "–"]
                if mode == "reverse"
                else [
                    f"{F.cosine_similarity(a.flatten(1), b.flatten(1)).min().item():.6f}"
                    for a, b in ((found.full_field, exact.full_field), (found.sds_field, exact.sds_field))
                ]
            )
            table.rows.append([dtype, mode, str(count), *errors, *cosines])
    return table


def _isolated_derivatives(model: Model, device: str, dtype: str, modes: list[str], count: int) -> list[Derivatives]:
    """`derivatives`. For sd1 in a child process, so that the model is never in memory in two dtypes."""
    if model.name != "sd1":
        return derivatives(model, device, dtype, modes, count)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(derivatives, model, device, dtype, modes, count).result()


def derivatives(model: Model, device: str, dtype: str, modes: list[str], count: int) -> list[Derivatives]:
    """LD's derivatives with respect to p, in float64 on the CPU. modes: forward, reverse, stock (torch.func.jvp)."""
    ldm, prompts = model.load(device, dtype)
    images, labels = model.images(count)
    seeds, embeddings = list(range(count)), prompts.matched(labels)
    precision = torch.promote_types(ldm.dtype, torch.float32)
    images = images.to(device, precision)
    p = torch.linspace(0.2, 0.9, count, dtype=torch.float64).to(device, precision)
    draw = Draw.of(ldm, model.image_size, seeds, precision)

    def ours(mode: str) -> Derivatives:
        (value, full), (_, sds) = (
            LatentDistillation(ldm, prompts, gradient=gradient, gradient_mode=mode, micro_batch=count).coefficients(
                images, labels, p, seeds
            )
            for gradient in ("full", "sds")
        )
        with torch.no_grad():
            fields = noise_predictions(ldm, images, Dual(p, torch.ones_like(p)), embeddings, draw)
        return Derivatives(value, full, sds, fields[1].tangent, fields[0].tangent)

    found = [stock_forward_mode(ldm, images, p, embeddings, draw) if mode == "stock" else ours(mode) for mode in modes]
    return [Derivatives(*(part.detach().double().cpu() for part in each)) for each in found]
