"""The zero-shot classifiers as DomainBed algorithms: in the host's scripts, and the pocket model on DigitStyles."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from domainbed_domainfusion.algorithms import zero_shot
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import hparams as table
from domainbed_domainfusion.pocket import CLASS_NAMES, digit_styles

from ..conftest import TinyDigits
from ..sweeping.test_command import script

NAMES = ["DiffusionClassifier", "TextToImageClassifier"]
#: Settings with a few U-Net evaluations per image.
QUICK = {"dc_stages": [[1, 3], [2, 1]], "t2i_min_scores": 2, "t2i_max_scores": 3}


class TenDigits(TinyDigits):
    """TinyDigits with the ten class names of DigitStyles."""

    CLASS_NAMES = CLASS_NAMES


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda name, **hparams: host_run(name, **{"ldm": tiny_ldm, **QUICK, **hparams})


def some_images(run, count=6):
    return torch.stack([run.dataset[0][i][0] for i in range(count)])


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_same_in_any_batch_and_order_and_another_seeds_differ(name, run, as_script):
    first, x = run(name), some_images(run(name))
    scores = first.algorithm.predict(x)
    assert scores.shape == (6, 4) and scores.isfinite().all()
    torch.testing.assert_close(run(name).algorithm.predict(x.flip(0)).flip(0), scores)
    torch.testing.assert_close(torch.cat([run(name).algorithm.predict(one) for one in x.split(1)]), scores)
    as_script("train", "--seed", "1")
    assert not torch.allclose(run(name).algorithm.predict(x), scores)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_trained_and_copies_hold_no_model(name, run):
    r = run(name)
    x = some_images(r)
    assert r.update(2) == [{}, {}]
    before = r.algorithm.predict(x)
    assert not list(r.algorithm.parameters()) and not r.algorithm.state_dict()
    assert r.algorithm._model is not None and len(pickle.dumps(r.algorithm)) < 20_000
    for copied in (copy.deepcopy(r.algorithm), pickle.loads(pickle.dumps(r.algorithm))):
        assert copied._model is None and not copied._remembered
        copied.load_state_dict(r.algorithm.state_dict())
        assert torch.equal(copied.predict(x), before)


def test_an_image_is_scored_once_in_a_process_as_far_as_it_remembers(run, monkeypatch):
    monkeypatch.setattr(zero_shot, "REMEMBERED_BYTES", 4 * 4 * 4)  # four images of four classes in float32
    algorithm, x = (r := run(NAMES[0])).algorithm, some_images(r)
    scored, score = [], algorithm._score_images
    monkeypatch.setattr(algorithm, "_score_images", lambda x, keys: scored.append(len(x)) or score(x, keys))
    doubled = algorithm.predict(torch.cat([x, x[:2]]))
    assert torch.equal(doubled[:2], doubled[6:])
    torch.testing.assert_close(algorithm.predict(x), doubled[:6])
    assert scored == [6, 2] and len(algorithm._remembered) == 4


@pytest.mark.parametrize(
    "name, value",
    [
        ("dc_stages", [[3, 1], [1, 1]]),
        ("dc_stages", [[1, 1], [3, 2]]),
        ("dc_stages", []),
        ("dc_stages", [[1.5, 1]]),
        ("dc_stages", [[2000, 1]]),
        ("t2i_min_scores", 1),
        ("t2i_cutoff", 2),
        ("scoring_batch", 0),
    ],
)
def test_bad_hparams_stop_with_a_sentence(name, value, run):
    with pytest.raises(InputError, match=f"The hparam {name} is .*, but must be "):
        table.check_values({name: value})
    with pytest.raises(InputError, match=f"The hparam {name} is "):
        run("DiffusionClassifier", **{name: value})


def test_a_model_that_is_not_there_stops_before_any_data_is_read(run, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        run("DiffusionClassifier", ldm=str(tmp_path / "nowhere"))


def test_the_hosts_scripts_make_rows_and_models_and_list_them(tiny_ldm, tmp_path):
    for name in NAMES:
        done = script(
            "train",
            "--algorithm",
            name,
            "--dataset",
            "Debug28",
            "--steps",
            "1",
            "--output_dir",
            str(tmp_path / name),
            "--hparams",
            json.dumps({"ldm": tiny_ldm, "batch_size": 4, **QUICK}),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (row,) = [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        assert row["step"] == 0 and row["args"]["algorithm"] == name and 0 <= row["env0_in_acc"] <= 1
        assert "lr_schedule" not in row["hparams"] and row["hparams"]["ldm"] == tiny_ldm
        assert not torch.load(tmp_path / name / "model.pkl", weights_only=True)["model_dict"]
    table = script("collect_results", "--input_dir", str(tmp_path)).stdout
    assert "Total records: 2" in table and all(f"\n{name}" in table for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_model_reads_digits_far_above_chance(name, host_run):
    """Twenty images of each environment. Chance is 10 %. Seeds and images are fixed."""
    algorithm = host_run(name, dataset=TenDigits).algorithm
    images = {
        "H": digit_styles.handwritten()[:20],
        **{environment: np.stack([digit_styles.render(environment, i) for i in range(20)]) for environment in "POA"},
    }
    for environment, pixels in images.items():
        scores = algorithm.predict(torch.from_numpy(pixels).float() / 255)
        accuracy = scores.argmax(1).eq(torch.arange(20) % 10).float().mean()
        assert accuracy >= 0.4, (environment, accuracy)
