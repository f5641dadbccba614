"""A made-up sweep folder: result rows of the right form with numbers that are easy to check by hand."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

# Target accuracy at the end, per algorithm and test environment.
TARGETS = {"ERM": (0.30, 0.70, 0.52, 0.20), "SAM": (0.34, 0.74, 0.50, 0.22), "DomainFusion": (0.45, 0.80, 0.61, 0.33)}


def write_sweep(
    folder: Path,
    dataset: str = "PACS",
    algorithms=tuple(TARGETS),
    trials: int = 1,
    hparams_seeds: int = 1,
    steps: int = 301,
    pairs: bool = False,
    hparams: str | None = None,
) -> list[Path]:
    """Write every job of such a sweep over four environments; return the job folders."""
    tests = [[env] for env in range(4)] + ([[a, b] for a in range(4) for b in range(a + 1, 4)] if pairs else [])
    return [
        write_job(folder, dataset, algorithm, test_envs, trial, seed, steps, hparams)
        for algorithm in algorithms
        for test_envs in tests
        for trial in range(trials)
        for seed in range(hparams_seeds)
    ]


def write_job(
    folder: Path,
    dataset: str,
    algorithm: str,
    test_envs: list[int],
    trial: int = 0,
    hparams_seed: int = 0,
    steps: int = 301,
    hparams: str | None = None,
) -> Path:
    args = {
        "algorithm": algorithm,
        "dataset": dataset,
        "test_envs": test_envs,
        "trial_seed": trial,
        "hparams_seed": hparams_seed,
        "holdout_fraction": 0.2,
        "data_dir": "data",
        "task": "domain_generalization",
        "seed": 7,
        "steps": steps,
    }
    if hparams is not None:
        args["hparams"] = hparams
    job = folder / hashlib.md5(json.dumps(args, sort_keys=True).encode()).hexdigest()
    job.mkdir(parents=True)
    args.update(
        output_dir=str(job),
        checkpoint_freq=None,
        uda_holdout_fraction=0,
        skip_model_save=False,
        save_model_every_checkpoint=False,
    )
    args.setdefault("hparams", None)
    checkpoints = [*range(0, steps - 1, 50), steps - 1]
    rows = [_row(args, algorithm, step, steps) for step in checkpoints]
    (job / "results.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    printed = "".join(f"\t{key}: {value}\n" for key, value in sorted(args.items()))
    (job / "out.txt").write_text(f"Environment:\n\tPython: 3.11\nArgs:\n{printed}HParams:\n\tlr: 0.001\n")
    (job / "err.txt").write_text("")
    (job / "done").write_text("done")
    if algorithm == "DomainFusion" and len(test_envs) == 1 and trial == hparams_seed == 0:
        write_gallery(job, test_envs[0])
    return job


def _row(args: dict, algorithm: str, step: int, steps: int) -> dict:
    progress = step / (steps - 1)
    wobble = 0.01 * math.sin(step + args["trial_seed"] + 3 * args["hparams_seed"])
    row = {
        "args": args,
        "step": step,
        "epoch": step / 75,
        "step_time": 0.05,
        "mem_gb": 0.0,
        "hparams": {
            "lr": 1e-3 * (1 + args["hparams_seed"]),
            "batch_size": 16,
            "backbone": None,
            "class_balanced": False,
        },
    }
    for env in range(4):
        final = TARGETS[algorithm][env] if env in args["test_envs"] else 0.97 - 0.02 * env
        row[f"env{env}_in_acc"] = 0.1 + (final - 0.1) * progress**0.5 + wobble
        row[f"env{env}_out_acc"] = row[f"env{env}_in_acc"] - 0.01
    loss = 2.3 * math.exp(-4 * progress) + 0.05 + wobble
    if algorithm == "DomainFusion":
        row.update(
            loss=loss + 0.5,
            raw_loss=loss,
            ld_loss=0.9 + wobble,
            generated_loss=loss + 0.3,
            confidence=progress,
            ld_coefficient=-0.01,
            ld_coefficient_below=0.02 * (1 - progress),
            ld_coefficient_above=-0.01 - 0.02 * (1 - progress),
            ld_share_below=1 - progress,
            ld_share_negative=0.5 + 0.4 * progress,
            ld_gradient_ratio=0.3 * progress,
            ld_not_finite=0.0,
            generated_images=12.0,
            generation_seconds=0.3,
            ld_seconds=0.1,
        )
        row["hparams"].update(ld_weight=0.5, candidates=3, ld_gradient="sds")
    else:
        row["loss"] = loss
    return row


def write_gallery(job: Path, test_env: int, side: int = 32, images: int = 8, rounds: int = 3) -> None:
    """Coloured discs with a brightness that follows the round; class names are numbers in words."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    entries = []
    for number in range(images):
        versions = []
        for round_ in range(rounds + 1):
            file = f"round-{round_:03d}/env1-{number:05d}.png"
            path = job / "generated" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
            disc = ((x**2 + y**2) < 0.2 + 0.1 * (number % 5))[..., None]
            colour = np.array([60 * round_, 255 - 60 * round_, 30 * number])
            Image.fromarray(np.where(disc, colour, 235 - 50 * round_).astype("uint8")).save(path)
            choice = {"content": number % 3, "style": (number + round_) % 3} if round_ else {}
            versions.append({"round": round_, "step": 75 * round_, "file": file, **choice})
        entries.append(
            {
                "domain": "PACSHO"[(number + test_env) % 4],
                "class_name": names[number % 8],
                "key": f"env1-{number:05d}",
                "versions": versions,
            }
        )
    choices = {"content": [50, 30, 20], "style": [10, 20, 70], "mixed": 0.62}
    (job / "generated" / "gallery.json").write_text(
        json.dumps({"class_names": names, "images": entries, "choices": choices})
    )
