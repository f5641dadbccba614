"""The files in sweeps/digits/: what each arm changes, and that the defaults for digits are the arm that was chosen."""

import json
import re
from pathlib import Path

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting import host, ld_presets
from domainbed_domainfusion.hosting.job_hparams import hparams_of
from domainbed_domainfusion.pocket.digit_styles import ENVIRONMENTS, PER_CLASS
from domainbed_domainfusion.sweeping import quickstart, sweep_files

ROOT = Path(cli.__file__).parents[2]
FILES = sorted((ROOT / "sweeps" / "digits").glob("*.txt"))


def arms(name: str) -> dict[str, dict]:
    """folder → the hparams that its sweep gives."""
    sweeps = sweep_files.read(ROOT / "sweeps" / "digits" / f"{name}.txt").sweeps
    return {sweep.folder: json.loads(sweep.given().hparams or "{}") for sweep in sweeps}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_right_and_says_what_a_user_asks_first(file):
    read = sweep_files.read(file)
    text = file.read_text()
    assert all(re.search(rf"^# {label}: ", text, re.M) for label in ("Answers to", "Jobs", "Minutes", "Launch", "Then"))
    for sweep in read.sweeps:
        assert sweep.given().datasets == ["DigitStyles"]


@pytest.mark.parametrize(
    "name, without_comparison",
    [
        ("choices", {"choose-erm", "choose-strength-0.8"}),
        ("ablations", {"ablate-full"}),
        ("levers", {"lever-none"}),
    ],
)
def test_each_arm_changes_from_another_one_what_its_comment_names(name, without_comparison):
    text = (ROOT / "sweeps" / "digits" / f"{name}.txt").read_text()
    found = arms(name)
    compared = re.findall(r"^# Against \[([\w.-]+)\]: (.+)\.$\n\[([\w.-]+)\]", text, re.M)
    assert {folder for _, _, folder in compared} == set(found) - without_comparison
    for base, changed, folder in compared:
        differing = {name for name in found[folder] | found[base] if found[folder].get(name) != found[base].get(name)}
        assert differing == set(re.findall(r"`(\w+)`", changed)), folder


def test_the_defaults_for_digits_are_the_arm_that_was_chosen():
    """The quickstart and the table run it. Of the readings of LD the best one is the preset."""
    chosen = arms("choices")["choose-candidates-1"]
    defaults = host.hparams_registry.default_hparams("DomainFusion", "DigitStyles")
    for name in ("strength", "guidance_scale", "denoising_steps", "candidates", "lambda2"):
        assert defaults[name] == chosen.get(name, defaults[name])
    quick = {**defaults, **quickstart.QUICKSTART_HPARAMS}
    assert {name: quick[name] for name in chosen if name != "ld_images"} == {
        name: value for name, value in chosen.items() if name != "ld_images"
    }
    assert arms("table")["digits-full"] == quickstart.QUICKSTART_HPARAMS
    reading = arms("choices")["choose-ld-guidance"]
    preset = ld_presets.LD_PRESETS[defaults["ld_preset"]]
    assert {name: reading[name] for name in preset if name in reading} == {
        name: value for name, value in preset.items() if name in reading
    }


def test_each_control_is_the_full_method_with_what_its_comment_names():
    found = arms("table")
    full = found.pop("digits-full")
    changed = {folder: {name: h[name] for name in h if h[name] != full.get(name)} for folder, h in found.items()}
    ld = {"lambda2": 0.5, "ld_images": 8}
    assert changed == {
        "digits-baselines": {},
        "digits-ld": ld,
        "digits-three-candidates": {"candidates": 3, "generation_budget": 200},
        "digits-synthetic": {},
        "digits-next-class": {**ld, "ld_prompts": "next_class"},
        "digits-untrained": {"ldm": "untrained-ldm"},
        "digits-zero-shot": {},
    }


def test_the_family_has_every_algorithm_of_ours():
    """Except PEGO, which needs a Vision Transformer, and the zero-shot classifier whose cost is not bounded."""
    file = sweep_files.read(ROOT / "sweeps" / "digits" / "family.txt")
    named = {algorithm for sweep in file.sweeps for algorithm in sweep.given().algorithms}
    added = set(host.algorithms.ALGORITHMS) - {"ERM"}  # minibed itself has no other
    assert named == {"ERM", *added} - {"PEGO", "TextToImageClassifier"}


def test_every_algorithm_of_the_family_can_be_built():
    """Some need more of the backbone or of the images than that they exist."""
    for sweep in sweep_files.read(ROOT / "sweeps" / "digits" / "family.txt").sweeps:
        given = sweep.given()
        for name in given.algorithms:
            hparams = {
                **host.hparams_registry.default_hparams(name, "DigitStyles"),
                **json.loads(given.hparams or "{}"),
            }
            host.algorithms.get_algorithm_class(name)((3, 32, 32), 10, 3, hparams)


def test_those_of_the_family_that_generate_have_as_many_evaluations_of_the_diffusion_model():
    counts = {}
    for sweep in sweep_files.read(ROOT / "sweeps" / "digits" / "family.txt").sweeps:
        for job in sweep.jobs(["--data_dir", "data", "--output_dir", "nowhere", "--command_launcher", "local"]):
            if job.train_args["algorithm"] in ("DomainFusion", "Synthetic", "CDGA"):
                hparams = hparams_of(job.train_args)
                counted = counting.count(job.train_args, hparams, [10 * PER_CLASS] * len(ENVIRONMENTS))
                executed = int(hparams["denoising_steps"] * hparams["strength"])
                settings = [executed, *(hparams[name] for name in ("guidance_scale", "scheduler"))]
                counts.setdefault((counted.candidates, *settings), set()).add(job.train_args["algorithm"])
    assert list(counts.values()) == [{"DomainFusion", "Synthetic", "CDGA"}]
