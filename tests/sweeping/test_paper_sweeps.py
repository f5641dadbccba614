"""The files in sweeps/, the paper's experiments: each has the jobs, the cost and the protocol that it states."""

import re
from pathlib import Path

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.data.benchmarks import BENCHMARKS
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting.job_hparams import hparams_of
from domainbed_domainfusion.report import published
from domainbed_domainfusion.sweeping import sweep_files

from .. import sweep_cost

ROOT = Path(cli.__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("sweeps/*.txt"))
LAUNCH = ["--data_dir", "data", "--output_dir", "runs", "--command_launcher", "dummy"]


def header(path: Path, label: str) -> str:
    """The text after `# label:` and on its continuation lines."""
    lines = (ROOT / path).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"# {label}:"))
    more = lines[start + 1 :]
    end = next(i for i, line in enumerate(more) if not line.startswith("#     "))
    return " ".join([lines[start].split(":", 1)[1].strip(), *(line[1:].strip() for line in more[:end])])


def jobs(path: Path) -> list[dict]:
    return [job.train_args for each in sweep_files.read(ROOT / path).sweeps for job in each.jobs(LAUNCH)]


def test_every_file_is_right_and_opens_with_what_a_user_asks_first(capsys):
    assert len(FILES) >= 17
    sweep_files.check([ROOT / path for path in FILES])
    for path in FILES:
        assert all(header(path, label) for label in ("Answers to", "Jobs", "GPU-hours", "Disk", "Then"))
        assert header(path, "Launch") == (
            f"domainfusion sweep launch {path} --data_dir data --output_dir runs \\ --command_launcher multi_gpu"
        )


def without_price(args: dict) -> str:
    """The job's algorithm, and its backbone if there is no price for that."""
    backbone = sweep_cost.counts(args).hparams["backbone"]
    return args["algorithm"] if backbone in sweep_cost.FORWARD else f"{args['algorithm']} on {backbone}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_gpu_hours_and_disk_follow_the_formula_in_the_readme(path):
    hours, disk = {}, 0.0
    every = jobs(path)
    for args in filter(sweep_cost.is_priced, every):
        hours[args["algorithm"]] = hours.get(args["algorithm"], 0.0) + sweep_cost.hours(args)
        disk += sweep_cost.disk(args)
    stated = header(path, "GPU-hours")
    assert stated.startswith(f"{sum(hours.values()):,.0f} of one H200") and "derived, not measured" in stated
    if len(hours) > 1:
        assert ", ".join(f"{name} {value:,.0f}" for name, value in hours.items()) in stated
    without = dict.fromkeys(without_price(args) for args in every if not sweep_cost.is_priced(args))
    assert stated.endswith(f"without {', '.join(without)}" if without else stated[-1])
    assert header(path, "Disk").startswith(f"{disk / 1e9:,.0f} GB" if disk > 1e9 else "under 1 GB")


MAIN = [
    path
    for path in FILES
    if path.stem.split("-")[0].lower() in [name.lower() for name in published.DATASETS]
    and path.stem.endswith(("-resnet50", "-regnety"))
]


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_the_benchmarks_quote_the_published_numbers_and_run_the_papers_protocol(path):
    every = jobs(path)
    dataset = every[0]["dataset"]
    level = published.RESNET50 if "resnet50" in path.stem else published.REGNETY
    for method in ("DomainFusion", "ERM", "SAM"):
        number = published.accuracy(level, method, dataset)
        assert number is None or f"{method} {number}" in header(path, "Answers to")
    images = counting.in_splits(BENCHMARKS[dataset].images, every[0]["holdout_fraction"])
    epochs = every[0]["steps"] / (min(images) / 16)
    assert {args["steps"] for args in every} == {every[0]["steps"]}
    assert epochs == 120 if dataset != "DomainNet" else every[0]["steps"] == 15001
    domainfusion = [hparams_of(args) for args in every if args["algorithm"] == "DomainFusion"]
    varied = {name for name in domainfusion[0] if len({repr(hparams[name]) for hparams in domainfusion}) > 1}
    assert varied <= {"lr", "candidates", "vit_dropout"} and {"lr", "candidates"} <= varied  # no backbone here is a ViT
    assert all(
        (h["batch_size"], h["weight_decay"], h["freeze_bn"], h["backbone"])
        == (16, 5e-4, True, "resnet50" if "resnet50" in path.stem else "regnety_16gf_swag")
        for h in domainfusion
    )


def test_ten_benchmarks():
    assert len(MAIN) == 10 and {jobs(path)[0]["dataset"] for path in MAIN} == set(published.DATASETS)


def test_the_cost_table_generates_the_papers_120000_images():
    domainfusion = [args for args in jobs(Path("sweeps/cost-table.txt")) if args["algorithm"] == "DomainFusion"]
    assert len(domainfusion) == 6
    for args in domainfusion:
        counts = sweep_cost.counts(args)
        assert (counts.kept, counts.candidates) == (40_000, 120_000)


def test_each_arm_of_an_ablation_is_the_full_method_with_what_its_comment_names():
    """Every arm differs from [officehome-full] in the hparams that its name says, and no two arms are equal."""
    arms = {}
    for path in FILES:
        if path.stem.startswith("officehome-") and path not in MAIN:
            for arm in sweep_files.read(ROOT / path).sweeps:
                arms[arm.folder] = hparams_of(arm.jobs(LAUNCH)[0].train_args)
    full = arms.pop("officehome-full")
    changed = {folder: {name: h[name] for name in h if h[name] != full[name]} for folder, h in arms.items()}
    assert changed["officehome-no-sampling"] == {"sampling_strategy": False}
    assert changed["officehome-no-updating"] == {"updating": False} and changed["officehome-no-ld"] == {"lambda2": 0}
    assert changed["officehome-n1"] == {"candidates": 1} and changed["officehome-n5"] == {"candidates": 5}
    assert all(changed[f"officehome-{name}"] == {"ld_corruption": name} for name in ("blur", "pepper", "mask"))
    assert changed["officehome-sds"] == {"ld_gradient": "sds"} and changed["officehome-ld-raw"] == {"ld_input": "raw"}
    grid = {folder: values for folder, values in changed.items() if "-generated-" in folder}
    assert len(grid) == 14  # 16, without the full method and the one without LD, which have other names
    for folder, values in grid.items():
        weights = re.findall(r"-([\d.]+)", folder)
        assert [values.get("lambda2", 0.5), values.get("lambda3", 0.5)] == [float(weight) for weight in weights]
    assert len({repr(values) for values in changed.values()}) == len(changed)


def test_make_check_sweeps_is_this_check():
    lines = (ROOT / "Makefile").read_text()
    assert re.search(
        r"^check-sweeps: .*\n\t\.venv/bin/domainfusion sweep --check sweeps/\*\.txt sweeps/digits/\*\.txt$", lines, re.M
    )
