"""Every suite from its command line, on the tiny model: what it prints and writes. No speed is asserted."""

import json
import re

import pytest
import torch

from benchmarks import candidates, levers, sweep
from benchmarks.__main__ import main
from benchmarks.ld import _exactness
from benchmarks.models import opened
from benchmarks.references import Pipeline
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.errors import InputError

RATIOS = {
    "ld": [
        "R1_full",
        "R1_sds",
        "R1_full_reverse",
        "R1_sds_reverse",
        "R1_full_vs_jvp",
        "R2_full",
        "R2_sds",
        "R2_full_reverse",
        "R2_sds_reverse",
    ],
    "candidates": ["R3", "R3_same_batch", "R4", "R4_guidance_interval", "R3_encoding"],
    "step": ["R5", "step_vs_ERM"],
    "levers": [
        "R8_reuse_interval",
        "R8_guidance_interval",
        "R8_guidance_agreement",
        "R8_early_choice",
        "R8_ld_interval",
        "R8_ld_gradient",
        "R8_ld_antithetic",
        "R8_bfloat16",
        "R8_together",
    ],
    "sweep": ["R7", "R7_small_sweep_counted", "R7_small_sweep"],
}


@pytest.fixture(autouse=True)
def fewer_runs(monkeypatch):
    """Of the small sweep: one test environment, one trial. Of the levers: one candidate in four steps."""
    monkeypatch.setattr(sweep, "SMALL", [(0, 3, 3), (0, 3, 5)])
    few = {"candidates": 1, "denoising_steps": 4, "strength": 1.0, "lambda2": 0.5, "generation_interval": 1}
    monkeypatch.setattr(levers, "paper_settings", lambda: few)


@pytest.mark.parametrize("suite", RATIOS)
def test_a_suite_prints_each_ratio_once(suite, tmp_path, capsys, request):
    if suite == "ld":
        request.getfixturevalue("stock_jvp")
    output = tmp_path / "results" / f"{suite}.json"
    assert main(["--suite", suite, "--model", "tiny", "--repeats", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^(\w+) \d+\.\d\d$", printed, re.MULTILINE) == RATIOS[suite]
    assert output.with_suffix(".md").read_text("utf-8").strip() == printed.strip()
    content = json.loads(output.read_text("utf-8"))
    assert list(content["ratios"]) == RATIOS[suite]
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in content["ratios"].values())
    assert all(len(taken) == 1 for taken in content["seconds"].values())
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert {"cpu", "torch", "diffusers", "command", "date"} <= set(content["machine"])
    assert content["machine"]["command"] == f"python -m benchmarks --suite {suite} --model tiny --repeats 1"
    assert content["settings"]["repeats"] == 1


def test_the_levers_are_measured_at_the_papers_settings(monkeypatch):
    monkeypatch.undo()
    paper = {"candidates": 3, "denoising_steps": 12, "strength": 0.8, "lambda2": 0.5, "ld_preset": "mean"}
    assert levers.paper_settings() == paper


@pytest.mark.parametrize("name", ["tiny", "pocket"])
def test_the_pipeline_beside_ours_is_of_the_same_model(name):
    """diffusers does not know the names that an ldm may have here."""
    with opened(name) as model:
        ours, _ = model.load("cpu", "float32")
        theirs = Pipeline(model, "cpu", "float32")._pipeline.unet
        assert all(torch.equal(a, b) for a, b in zip(ours._unet.parameters(), theirs.parameters()))


def test_compiled_is_the_model_that_ours_uses(monkeypatch):
    compiled = []
    monkeypatch.setattr(LatentDiffusion, "compile", lambda self, cuda_graphs: compiled.append((self, cuda_graphs)))
    monkeypatch.setattr(candidates, "interleaved", lambda methods, *_: {name: [1.0] for name in methods})
    with opened("tiny") as model:
        for how, graphs in (("kernels", False), ("cuda_graphs", True)):
            results = candidates.run(model, "cpu", "float32", 1, compiled=how)
            assert compiled.pop() == (model.load("cpu", "float32")[0], graphs) and results.settings["compiled"] == how


def test_ld_gradients_are_exact(stock_jvp):
    """The exactness table is of our gradient against float64: columns that a wrong rule would spoil."""
    with opened("tiny") as model:
        rows = {tuple(row[:2]): row[3:] for row in _exactness(model, "cpu").rows}
    assert all(float(error) < 1e-4 for error in rows["float32", "forward"][:2] + rows["float32", "reverse"][:2])
    assert all(float(cosine) > 0.99 for cosine in rows["bfloat16", "forward"][2:])
    assert all(float(error) > 1e-4 for error in rows["bfloat16", "forward"][:2])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "cuda"], "torch finds no GPU here: run the benchmark with --device cpu."),
        (["--repeats", "0"], "--repeats must be at least 1."),
        (["--compile"], "--compile compiles generation: use it with --suite candidates."),
        (["--output", "x.txt"], "--output must end in .json, because the table goes to a .md beside it: x.txt."),
    ],
)
def test_bad_arguments(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--suite", "ld", "--model", "tiny", *arguments])
