"""An estimate as two plain tables, the second in the paper's units, or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..report.cost import SECONDS_PER_DAY
from ..report.published import COSTS
from .costs import Seconds

PAPER_IMAGES = next(cost.images for cost in COSTS if cost.method == "DomainFusion")
PARTS = ("starting", "training", "generation", "distillation", "evaluation", "saving")
HEADINGS = ("start", "training", "generation", "LD", "evaluation", "saving")


def as_text(estimate: Any) -> str:
    """What `domainfusion estimate` prints."""
    groups = _groups(estimate)
    blocks = [_sizes(estimate), _counts(groups), _times(groups, estimate), _resources(estimate)]
    if any(group["kept"] for group in groups):
        blocks.append(_paper_units(groups))
    return "\n\n".join([*blocks, *estimate.notes])


def as_json(estimate: Any) -> dict[str, Any]:
    """The same numbers as JSON values: seconds, bytes and counts, one entry per (dataset, algorithm)."""
    groups = [
        {
            **{key: value for key, value in group.items() if key not in ("seconds", "rates")},
            "seconds": {**asdict(group["seconds"]), "total": group["seconds"].total},
            "rates": [asdict(rates) for rates in group["rates"]],
        }
        for group in _groups(estimate)
    ]
    return {
        "jobs": len(estimate.jobs),
        "jobs_begun_or_done": estimate.begun_or_done,
        "launcher": estimate.launcher,
        "jobs_beside": estimate.conditions.jobs_at_a_time,
        "wall_clock_seconds": estimate.wall_clock,
        "ram_bytes": estimate.ram_bytes,
        "disk_bytes": estimate.disk_bytes,
        "groups": groups,
        "notes": estimate.notes,
        "images": {name: list(data.images) for name, data in estimate.data.items()},
    }


def _groups(estimate: Any) -> list[dict[str, Any]]:
    """Sums per dataset and algorithm."""
    found: dict[tuple, list[int]] = {}
    for i, job in enumerate(estimate.jobs):
        found.setdefault((job.dataset, job.algorithm), []).append(i)
    groups = []
    for (dataset, algorithm), members in found.items():
        jobs = [estimate.jobs[i] for i in members]
        rates = [
            rates for measured in dict.fromkeys(estimate.measured[i] for i in members) for _, rates in measured.points
        ]
        groups.append(
            {
                "dataset": dataset,
                "algorithm": algorithm,
                "jobs": len(jobs),
                **{
                    name: sum(getattr(job, name) for job in jobs)
                    for name in ("steps", "evaluated", "rounds", "kept", "candidates", "ld_gradients")
                },
                "seconds": Seconds.sum([estimate.seconds[i] for i in members]),
                "rates": rates,
            }
        )
    return groups


def _sizes(estimate: Any) -> str:
    lines = []
    for name, data in estimate.data.items():
        source = "published sizes" if data.published else "in --data_dir"
        lines.append(f"{name}: {sum(data.images):,} images in {len(data.images)} environments ({source})")
    begun = f"; {estimate.begun_or_done} more are done or begun" if estimate.begun_or_done else ""
    return "\n".join([f"{len(estimate.jobs)} jobs to launch{begun}", *lines])


def _counts(groups: list[dict[str, Any]]) -> str:
    rows = [["", "jobs", "steps", "images evaluated", "rounds", "generated", "of them kept", "LD gradients"]]
    rows += [
        [
            _name(group),
            *(
                f"{group[key]:,}"
                for key in ("jobs", "steps", "evaluated", "rounds", "candidates", "kept", "ld_gradients")
            ),
        ]
        for group in groups
    ]
    return _table(rows)


def _times(groups: list[dict[str, Any]], estimate: Any) -> str:
    rows = [["time of all jobs", *HEADINGS, "sum", "one job"]]
    for group in groups:
        parts = [duration(getattr(group["seconds"], part)) for part in PARTS]
        rows.append(
            [_name(group), *parts, duration(group["seconds"].total), duration(group["seconds"].total / group["jobs"])]
        )
    total = Seconds.sum([group["seconds"] for group in groups])
    rows.append(["sum", *(duration(getattr(total, part)) for part in PARTS), duration(total.total), ""])
    return _table(rows)


def _resources(estimate: Any) -> str:
    rates = [point for measured in estimate.measured for _, point in measured.points]
    if not rates:
        return "Nothing to launch."
    device = rates[0].device if rates[0].gpu_bytes else f"CPU, {rates[0].threads} threads a job"
    at_a_time = estimate.conditions.jobs_at_a_time
    if estimate.conditions.cluster:
        wall = f"depends on {estimate.launcher}: {duration(estimate.wall_clock)} one job after the other"
    else:
        wall = f"{duration(estimate.wall_clock)} with {estimate.launcher}, {at_a_time} at a time"
    ram = estimate.ram_bytes
    gpu = max(point.gpu_bytes for point in rates)
    few = max(point.few_images for point in rates)
    few_note = f" with {few} of a batch's images; all of them take more" if few else ""
    loaders, prefetched = (
        max(getattr(point, name) for point in rates) for name in ("loader_processes", "prefetched_bytes")
    )
    loader_note = (
        f"; beside it a job has {loaders} loader processes, with {_size(prefetched)} of waiting minibatches"
        if loaders
        else ""
    )
    return "\n".join(
        [
            f"wall clock   {wall} ({device})",
            f"GPU memory   {_size(gpu) + ' a job, measured' if gpu else 'not measured: no GPU here'}",
            f"RAM          {_size(ram)} a job, {_size(ram * at_a_time)} for those at a time (measured peak of the main "
            f"process{few_note}{loader_note})",
            f"disk         {_size(estimate.disk_bytes)} (model.pkl, results, gallery, saved rounds)",
        ]
    )


def _paper_units(groups: list[dict[str, Any]]) -> str:
    rows = [["days of one device", "fine-tuning", "generation", "total", "images"]]
    for cost in COSTS:
        rows.append(
            [
                f"{cost.method}, published (DomainNet, V100)",
                *_days(cost.tuning_days, cost.generation_days),
                cost.images_text,
            ]
        )
    for group in groups:
        if group["kept"]:
            generation, images = group["seconds"].generation / SECONDS_PER_DAY, group["candidates"]
            rows.append([f"{_name(group)}, {group['jobs']} jobs here", *_days(0, generation), f"{images:,}"])
            rows.append(
                [f"{_name(group)}, one job here", *_days(0, generation / group["jobs"]), f"{images // group['jobs']:,}"]
            )
            rows.append(
                [
                    f"{_name(group)}, the paper's images here",
                    *_days(0, generation * PAPER_IMAGES / images),
                    f"{PAPER_IMAGES:,}",
                ]
            )
    return _table(rows) + (
        "\nThe diffusion model is frozen: nothing is fine-tuned. The paper counts neither the "
        "classifier's steps nor LD here; the table above does."
    )


def _days(tuning: float, generation: float) -> list[str]:
    days = (tuning, generation, tuning + generation)
    return [f"{value:.4f}" if 0 < value < 0.1 else f"{value:.2f}" for value in days]


def _name(group: dict[str, Any]) -> str:
    return f"{group['dataset']} {group['algorithm']}"


def duration(seconds: float) -> str:
    """Seconds as text in a fitting unit: "41 s", "12.3 min", "5.4 h", "12.3 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 100 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / SECONDS_PER_DAY:.1f} days"


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A text table: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *numbers in rows:
        lines.append("  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(numbers, widths[1:]))]))
    return "\n".join(line.rstrip() for line in lines)
