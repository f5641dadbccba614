"""The hparams table and its draws, through the host's own registry."""

import json

import numpy as np
import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import domainfusion_hparams, host, hparams, ld_presets

DATASETS = ["Debug28", "Debug224", "PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet", "DigitStyles"]
ALGORITHMS = [
    "ERM",
    "SAM",
    "SAGM",
    "TRAM",
    "UDIM",
    *hparams.RIVALS,
    "RandAugment",
    "AugMix",
    "DomainFusion",
    "Synthetic",
    "CDGA",
    *hparams.TEST_TIME,
    "DiffusionClassifier",
    "TextToImageClassifier",
]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_deterministic_plain_json_and_valid(algorithm, dataset):
    registry = host.hparams_registry
    for seed in range(20):
        values = registry.random_hparams(algorithm, dataset, seed)
        assert values == registry.random_hparams(algorithm, dataset, seed)
        assert list(values) == list(registry.default_hparams(algorithm, dataset))
        for row in hparams.TABLES.get(algorithm, ()):
            assert type(values[row.name]) in (int, float, str, bool, type(None), list), row.name
            assert row.valid(values[row.name]), row.name
        assert json.loads(json.dumps(hparams.added_draws(algorithm, dataset, seed))) == hparams.added_draws(
            algorithm, dataset, seed
        )
    hparams.check_values(registry.default_hparams(algorithm, dataset))


def test_the_paper_searches_and_values():
    """Supplement, 4.2 and 4.3, typed from the paper."""
    drawn = [host.hparams_registry.random_hparams("DomainFusion", "PACS", seed) for seed in range(200)]
    assert {values["lr"] for values in drawn} == {1e-4, 3e-4, 5e-4, 7e-4, 9e-4, 1e-3}
    assert {values["candidates"] for values in drawn} == {1, 3, 5}
    values = host.hparams_registry.default_hparams("DomainFusion", "PACS")
    paper = {
        "batch_size": 16,
        "weight_decay": 5e-4,
        "image_size": 320,
        "candidates": 3,
        "generation_interval": 5,
        "lambda1": 1.0,
        "lambda2": 0.5,
        "lambda3": 0.5,
        "content_weight": 0.4,
        "strength": 0.8,
        "guidance_scale": 7.5,
        "lr_schedule": "cosine",
        "ldm": "CompVis/stable-diffusion-v1-4",
    }
    assert {name: values[name] for name in paper} == paper


def test_the_zero_shot_classifiers_share_the_diffusion_model_and_nothing_else_of_domainfusions():
    names = {algorithm: {row.name for row in hparams.TABLES[algorithm]} for algorithm in ALGORITHMS[2:]}
    for algorithm in ("DiffusionClassifier", "TextToImageClassifier"):
        assert names[algorithm] & names["DomainFusion"] == {row.name for row in domainfusion_hparams.LDM}
        drawn = host.hparams_registry.random_hparams(algorithm, "PACS", 7)
        assert {name: drawn[name] for name in names[algorithm]} == hparams.added_defaults(algorithm, "PACS")


def test_drawn_as_the_host_draws_its_own():
    """Each name from RandomState(seed_hash(random_seed, name)), whatever else is drawn."""
    for seed in range(20):
        state = np.random.RandomState(host.lib.misc.seed_hash(seed, "rho"))
        expected = [0.01, 0.02, 0.05, 0.1][state.choice(4)]
        assert host.hparams_registry.random_hparams("SAM", "PACS", seed)["rho"] == expected


def test_digit_styles_takes_the_small_image_defaults():
    digits = host.hparams_registry.default_hparams("ERM", "DigitStyles")
    assert digits == host.hparams_registry.default_hparams("ERM", "Debug28")
    assert digits["batch_size"] == 64 and digits["lr"] == 1e-3


def test_erm_keeps_exactly_the_hosts_hparams():
    assert not set(hparams.ROWS) - set(hparams.HOST_NAMES) & set(host.hparams_registry.default_hparams("ERM", "PACS"))


@pytest.mark.parametrize(
    "name, value",
    [
        ("strength", 0),
        ("strength", 1.5),
        ("candidates", 0),
        ("candidates", 2.5),
        ("candidates", True),
        ("ld_gradient", "both"),
        ("ld_timesteps", [0.5, 0.5]),
        ("ld_timesteps", [0.1]),
        ("ld_preset", None),
        ("prompt_template", "a photo"),
        ("class_names", "dog"),
        ("lambda2", -1),
        ("updating", "false"),
        ("lr", "1e-3"),
        ("rho", 0),
    ],
)
def test_a_value_out_of_range_says_what_it_must_be(name, value):
    with pytest.raises(InputError, match=f"The hparam {name} is .*, but must be "):
        hparams.check_values({name: value})


def test_a_typing_error_names_the_nearest_hparam():
    with pytest.raises(InputError, match="Nobody knows the hparam 'lamda2' in --hparams: did you mean 'lambda2'?"):
        hparams.check_names(["lamda2"], set(hparams.ROWS))


def test_every_row_is_documented():
    for row in hparams.ROWS.values():
        assert row.meaning and row.source and row.range and row.valid(row.default), row.name
        assert row.search is None or all(row.valid(value) for value in row.search), row.name


def test_a_preset_fills_in_what_is_null_and_no_more():
    """An explicit value overrides the preset, also one that another preset has."""
    defaults = host.hparams_registry.default_hparams("DomainFusion", "PACS")
    assert set(ld_presets.with_ld_preset(defaults)) == set(defaults)
    for name, preset in ld_presets.LD_PRESETS.items():
        filled = ld_presets.with_ld_preset({**defaults, "ld_preset": name})
        assert {key: filled[key] for key in preset} == preset
        assert {key: value for key, value in filled.items() if key not in (*preset, "ld_preset")} == {
            key: value for key, value in defaults.items() if key not in (*preset, "ld_preset")
        }
        hparams.check_values(filled)
    mixed = ld_presets.with_ld_preset({**defaults, "ld_preset": "score", "ld_gradient": "full", "ld_reduction": "mean"})
    assert (mixed["ld_gradient"], mixed["ld_reduction"], mixed["ld_guidance_scale"]) == ("full", "mean", 7.5)


def test_presets_name_the_same_hparams_and_all_of_them_may_be_null():
    names = [set(preset) for preset in ld_presets.LD_PRESETS.values()]
    nullable = {
        row.name for row in domainfusion_hparams.DOMAINFUSION if row.name.startswith("ld_") and row.default is None
    }
    assert all(each == nullable - {"ld_encoder"} for each in names)
