"""What the pages state, against the code: the hparams, the house, names, measured and counted numbers, links."""

import json
import re

import pytest

from benchmarks import models as benchmark_models
from domainbed_domainfusion.data.benchmarks import BENCHMARKS
from domainbed_domainfusion.data.findings import KINDS
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting import backbones, checks, host, hparams, ld_presets
from domainbed_domainfusion.hosting.job_hparams import hparams_of
from domainbed_domainfusion.sweeping import sweep_files
from domainbed_domainfusion.sweeping.launchers import slurm_settings

from .. import sweep_cost
from ..test_structure import FLOORS
from .command_lines import verbs
from .pages import PAGES, README, ROOT, anchors, blocks, inline_code, links

DOCS = ROOT / "docs"


def page_id(page) -> str:
    return str(page.relative_to(ROOT))


def table_rows(text: str, begins: str) -> list[list[str]]:
    """The cells of every table row of a page that begins like this."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(begins, line)
    ]


def test_the_readme_is_short_and_names_what_other_places_rely_on():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    for command in ("make quickstart", "make test", "make check", "make test-lowest"):
        assert command in text
    makefile = (ROOT / "Makefile").read_text()
    assert "\nquickstart:" in makefile and "\ntest:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_hparams_page_ends_with_the_table_of_the_code():
    """`python -m domainbed_domainfusion.hosting.hparams` prints it."""
    text = (DOCS / "hparams.md").read_text()
    assert text.endswith(f"\n\n{hparams.markdown_table()}\n"), "print the table again: make docs"
    assert text.count("| hparam |") == 1


def test_the_readings_of_latent_distillation_are_the_presets():
    rows = table_rows(
        (DOCS / "method.md").read_text(), r"\| `ld_(when|gradient|guidance|reduction|timesteps|weighting)"
    )
    stated = {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in rows if len(row) == 5}
    stated = {name: cells for name, cells in stated.items() if name in ld_presets.LD_PRESETS["mean"]}
    presets = [ld_presets.LD_PRESETS[name] for name in ("mean", "listing", "score", "guidance")]

    def written(value) -> str:
        return f"{value[0]:g} to {value[1]:g}" if isinstance(value, list) else str(value).removesuffix(".0")

    assert stated == {name: [written(preset[name]) for preset in presets] for name in presets[0]}


def test_the_floors_are_those_that_the_imports_are_held_to():
    rows = table_rows((DOCS / "structure.md").read_text(), r"\| \d+ \|")
    stated = {int(floor): tuple(re.findall(r"`(\w+)`", rooms)) for floor, rooms, _ in rows}
    assert stated == dict(enumerate(FLOORS))


def known_names() -> set[str]:
    """Everything that a lower-case name in backticks may be."""
    package = ROOT / "domainbed_domainfusion"
    values = [row.range[1].split("one of ")[1] for row in hparams.ROWS.values() if "one of " in row.range[1]]
    sources = [path.read_text() for path in (package / "algorithms").glob("*.py")]
    reported = re.findall(r'"(ld_\w+)":', "\n".join(sources))
    ratios = [json.loads(path.read_text())["ratios"] for path in ROOT.glob("benchmarks/results/*.json")]
    modules = [*package.rglob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("sweeps/**/*.txt"), package]
    return {
        *checks.known_names(),
        *(value for text in values for value in text.split(", ")),
        *("host", "pocket", "mnist_cnn", "tiny_vit", "resnet10t", *backbones.TORCHVISION),  # values of backbone and ldm
        *(path.stem for path in ROOT.glob("results/**/*.jsonl")),
        *verbs(),
        *(path.stem for path in modules),
        *(room for floor in FLOORS for room in floor),
        *host.command_launchers.REGISTRY,
        *benchmark_models.MODELS,
        *(name for named in ratios for name in named),
        "multi_gpu",  # DomainBed's launcher
        "done",  # a file in a job's folder
        *reported,  # values in a row of results.jsonl
        "delete_incomplete",  # the sweep's other verb
        *slurm_settings.CHECKS,  # keys of slurm.toml
        *KINDS,  # what `data check` finds
        *(benchmark.folder for benchmark in BENCHMARKS.values()),
        *("kept", "executed", "forward"),  # of the formula in sweeps/README.md
        *("_reverse", "R2_full_batch"),  # the endings of R1 and R2, and what only a GPU gives
    }


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_in_backticks_exist(page):
    """Hparams above all; also verbs, rooms, modules, launchers, sweep files, and values that an hparam may have."""
    known = known_names()
    names = [code for code in inline_code(page) if re.fullmatch(r"[a-zR_][a-z0-9_\-]*", code)]
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_hparams_in_quotes_exist_and_their_values_are_in_range(page):
    """`"name"` and `"name": value` in backticks."""
    for code in inline_code(page):
        if match := re.fullmatch(r'"([a-z]\w*)"(: .+)?', code):
            is_value = hparams.ROWS["save_generated"].valid(match[1])
            assert is_value or match[1] in checks.known_names(), code
            if match[2] and "…" not in match[2]:
                checks.check_hparams_text("{" + code + "}")


def test_the_ten_knobs_are_ten_hparams():
    text = README.read_text()
    knobs = table_rows(text[text.index("## Ten knobs") :], r"\| `\w+` \|")
    assert len(knobs) == 10 and all(name.strip("`") in hparams.ROWS for name, _ in knobs)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for target in links(page):
        if target.startswith("https://"):
            continue
        path, _, fragment = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{target} does not exist"
        assert not fragment or fragment in anchors(file), f"{file.name} has no heading for #{fragment}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_in_backticks_exist(page):
    for code in inline_code(page):
        if re.match(r"(domainbed_domainfusion|tests|docs|sweeps|patches|benchmarks)/[\w./-]*$", code):
            assert (ROOT / code).exists(), f"{code} does not exist"
        elif re.fullmatch(r"\w+\.py", code):
            folder = page.parent if page.parent.name == "benchmarks" else ROOT / "domainbed_domainfusion"
            assert list(folder.rglob(code)), f"there is no {code}"


def test_every_page_is_named_in_the_readme():
    named = {(README.parent / target.partition("#")[0]).resolve() for target in links(README)}
    assert {page for page in PAGES if page.parent == DOCS} <= named


# ---- numbers ----


def the_readmes_sweep() -> list[dict]:
    """The jobs' arguments of the sweep in the README."""
    words = next(
        command
        for block in blocks(README)
        for command in block.commands()
        if command[:3] == ["python", "-m", "domainbed.scripts.sweep"]
    )
    return [job.train_args for job in sweep_files.jobs_of(sweep_files.parser().parse_args(words[4:]))]


def test_the_readmes_sweep_costs_what_is_stated():
    jobs, page = the_readmes_sweep(), " ".join((DOCS / "domainbed.md").read_text().split())
    hours: dict[str, float] = {}
    for args in jobs:
        hours[args["algorithm"]] = hours.get(args["algorithm"], 0.0) + sweep_cost.hours(args)
    each = ", ".join(f"{name} {round(hours[name])}" for name in ("DomainFusion", "SAM", "ERM"))
    stated = f"It is {len(jobs)} jobs. By the formula in [sweeps/README.md](../sweeps/README.md) they take about "
    assert stated + f"{round(sum(hours.values()))} GPU-hours of one H200: {each}." in page
    assert f"The jobs' folders take {round(sum(map(sweep_cost.disk, jobs)) / 1e9)} GB," in page
    assert f"The sweep is {len(jobs)} jobs." in " ".join(README.read_text().split())


def test_a_domainfusion_job_does_what_is_stated():
    images = BENCHMARKS["PACS"].images
    counts = [
        counting.count(args, hparams_of(args), images)
        for args in the_readmes_sweep()
        if args["algorithm"] == "DomainFusion"
    ]
    assert {(job.steps, job.rounds, round(job.ld_gradients, -4)) for job in counts} == {(5001, 12, 240_000)}
    low, high = (round(number, -3) for number in (min(c.candidates for c in counts), max(c.candidates for c in counts)))
    page = " ".join((DOCS / "domainbed.md").read_text().split())
    assert f"runs 12 rounds, generates {low:,} to {high:,} candidates and computes 240,000 LD gradients" in page
    smallest = min(n - int(0.2 * n) for n in images)
    assert round(5001 / (smallest / 16)) == 60 and "5,001 steps is 60 epochs of PACS" in page


def test_the_ratios_are_those_of_the_results():
    text = (DOCS / "speed-and-exactness.md").read_text()
    results = {
        model: {
            name: ratio["median"]
            for path in ROOT.glob(f"benchmarks/results/cpu-*-{model}.json")
            for name, ratio in json.loads(path.read_text())["ratios"].items()
        }
        for model in ("sd1", "pocket")
    }
    rows = table_rows(text, r"\| `[Rs]\w+` \|")
    assert len(rows) == 15
    for name, _, *stated in rows:
        measured = [results[model].get(name.strip("`")) for model in ("sd1", "pocket")]
        assert stated == ["–" if number is None else f"{number:.2f}" for number in measured], name
    devices = json.loads((ROOT / "benchmarks" / "results" / "cpu-devices.json").read_text())
    speed_up = devices["ratios"]["speed_up"]["median"]
    assert f"in two processes of one thread is {speed_up:.2f} times as fast as in one" in text
    assert devices["notes"] == ["The images of both are equal, bit for bit."]
    step = (ROOT / "benchmarks" / "results" / "cpu-step-pocket.md").read_text()
    (share,) = re.findall(r"(\d+ %) are generation, 0 % Latent Distillation", step)
    assert f"Of the step's seconds {share} are generation," in text


def test_the_levers_are_those_of_the_results():
    text = (DOCS / "speed-and-exactness.md").read_text()
    (table,) = json.loads((ROOT / "benchmarks" / "results" / "cpu-levers-pocket.json").read_text())["tables"]
    none, *levers = ([row[name].split()[0] for name in ("÷ without", "÷ ERM")] for row in table)
    assert f"Without any, the step takes {none[1]} of ERM's." in text
    stated = [row[1:3] for row in table_rows(text, r"\| .* \| \d\.\d\d \| \d+\.\d\d \| \D")]
    assert stated == levers
    nine = json.loads((ROOT / "benchmarks" / "results" / "cpu-sampler-levers.json").read_text())["tables"][1]
    columns = ("evaluations", "seconds", "PSNR", "same content", "same style")
    measured = [[row[name].split(" (")[0] for name in columns] for row in nine[1:5]]
    assert [row[1:] for row in table_rows(text, r"\| .* % \| 0\.\d\d \| ")] == measured


def test_what_draws_of_latent_distillation_leave_to_chance_is_that_of_the_results():
    text = (DOCS / "speed-and-exactness.md").read_text()
    tables = json.loads((ROOT / "benchmarks" / "results" / "cpu-ld-variance.json").read_text())["tables"]
    prices = [{row["draws of an image"]: row["price"].split()[0] for row in table} for table in tables]
    rows = table_rows(text, r"\| \d draws?.* \| \d\.\d\d \| \d\.\d\d \|")
    assert [row[0] for row in rows] == list(prices[0])[1:]
    assert all(row[1:] == [reading[row[0]] for reading in prices] for row in rows)


def test_what_a_distilled_encoder_saves_and_costs_is_that_of_the_results():
    text = " ".join((DOCS / "speed-and-exactness.md").read_text().split())
    folder = ROOT / "benchmarks" / "results"
    full = json.loads((folder / "cpu-ld-encoder-sd1.json").read_text())["ratios"].values()
    low, high = (f"{number:.2f}" for number in (min(r["median"] for r in full), max(r["median"] for r in full)))
    assert f"LD takes {low} to {high} of its seconds then, in each reading" in text
    errors, costs = json.loads((folder / "cpu-ld-encoder.json").read_text())["tables"]
    for error, cost in zip(errors, costs, strict=True):
        columns = ("reading", "same sign", "cosine", "error by one draw's chance")
        cells = [*(error[column] for column in columns), cost["ratio"].split()[0]]
        assert f"| {' | '.join(cells)} |" in text


def test_the_price_of_resuming_is_that_of_the_results():
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu-resume.json").read_text())
    text = (DOCS / "resume.md").read_text()
    for row in content["tables"][0]:
        name, _, share, seconds, part = row.values()
        assert f"| {name} | {share} % | {seconds} s | {part} % |" in text


def test_the_exactness_is_that_of_the_results():
    results = (ROOT / "benchmarks" / "results" / "cpu-ld-sd1.md").read_text()
    rows = {(row[0], row[1]): row[3:] for row in table_rows(results, r"\| (float32|bfloat16) \| forward \|")}
    errors = max(float(error) for error in rows["float32", "forward"][:2])
    cosines = min(float(cosine) for cosine in rows["bfloat16", "forward"][2:])
    text = (DOCS / "speed-and-exactness.md").read_text()
    assert f"at most {errors:.1e}".replace("e-0", "e-") in text and cosines >= 0.998
    assert "In bfloat16 the cosine is at least .998" in text


def test_the_example_of_a_sweep_file_is_one(tmp_path):
    (block,) = [block for block in blocks(DOCS / "sweeps-and-cost.md") if "# Jobs:" in block.text]
    text = re.sub(r"  +\S.*$", "", block.text, flags=re.M)  # without the explanations beside
    (tmp_path / "try.txt").write_text(text)
    assert sweep_files.read(tmp_path / "try.txt").stated_jobs == 4
