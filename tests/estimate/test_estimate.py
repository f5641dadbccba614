"""The whole estimate at tiny size, and its printout."""

import json

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import Data, Estimate, calibration, costs, counting, printout
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pocket.digit_styles import digit_styles_class

from .made_up import REQUIRED, rates


def test_the_whole_estimate(monkeypatch, tmp_path, capsys, tiny_ldm):
    """Stdout is one JSON object, although the algorithm prints. The sweep folder is not made."""
    monkeypatch.setattr(calibration, "SECONDS", 0.1)
    hparams = {"ldm": tiny_ldm, "batch_size": 4, "denoising_steps": 3, "generation_interval": 1, "ld_images": 2}
    hparams |= {"candidates": 3, "lambda2": 0.5}
    cli.main(
        [
            "estimate",
            "launch",
            "--algorithms",
            "DomainFusion",
            "--datasets",
            "Debug28",
            "--single_test_envs",
            "--n_hparams",
            "1",
            "--n_trials",
            "1",
            "--steps",
            "5",
            "--command_launcher",
            "local",
            "--data_dir",
            "unused",
            "--output_dir",
            str(tmp_path / "sweep"),
            "--hparams",
            json.dumps(hparams),
            "--json",
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "sweep").exists()
    (ours,) = result["groups"]
    # in-splits of 13 images: an epoch is 3.25 steps, so rounds at steps 0 and 4
    assert (ours["jobs"], ours["kept"], ours["candidates"]) == (3, 3 * 2 * 26, 3 * 2 * 26 * 3)
    assert (ours["ld_gradients"], ours["evaluated"]) == (3 * 5 * 2, 3 * 2 * 48)
    assert all(ours["seconds"][part] > 0 for part in printout.PARTS)
    assert result["disk_bytes"] > 3 * ours["rates"][0]["model_bytes"]
    assert ours["rates"][0]["imports"] < result["wall_clock_seconds"]


def test_what_is_printed():
    """Numbers by hand: two jobs, each with 43,200 s (half a day) of generation."""
    made = counting.Job(
        {"dataset": "PACS", "algorithm": "DomainFusion"},
        {},
        steps=1000,
        checkpoints=3,
        evaluated=29973,
        rounds=2,
        kept=8000,
        candidates=24000,
        ld_gradients=48000,
        domains=3,
    )
    point = calibration.GroupRates(
        [
            (
                made,
                rates(
                    ram_bytes=2**31,
                    device="cpu",
                    threads=2,
                    few_images=1,
                    loader_processes=88,
                    prefetched_bytes=3 * 2**30,
                ),
            )
        ]
    )
    part = costs.Seconds(10, 3600, 43200, 7200, 720, 1)
    result = Estimate(
        "local",
        [made, made],
        [part, part],
        1,
        {"PACS": Data((1, 2), True)},
        calibration.Conditions(({},)),
        [point, point],
        part.total * 2,
        2**31,
        2**30,
        ["A note."],
    )
    text = printout.as_text(result)
    assert "2 jobs to launch; 1 more are done or begun" in text
    assert "a job has 88 loader processes, with 3.0 GiB of waiting minibatches" in text
    assert "PACS: 3 images in 2 environments (published sizes)" in text
    lines = {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in text.splitlines() if "  " in line}
    assert lines["PACS DomainFusion, 2 jobs here"] == ["0.00", "1.00", "1.00", "48,000"]
    assert lines["PACS DomainFusion, one job here"] == ["0.00", "0.50", "0.50", "24,000"]
    assert lines["PACS DomainFusion, the paper's images here"] == ["0.00", "2.50", "2.50", "120,000"]
    assert lines["DSI, published (DomainNet, V100)"] == ["22.44", "7.94", "30.38", "244k"]
    assert "30.4 h with local, 1 at a time" in text and text.endswith("A note.")
    assert json.dumps(printout.as_json(result))


def test_a_calibration_that_fails_names_the_reason(tmp_path, capsys):
    with pytest.raises(InputError, match="The calibration of ERM on Debug28 failed: .*batch_size 20: lower it"):
        cli.run(
            ["estimate", "--algorithms", "ERM", "--datasets", "Debug28", "--hparams", '{"batch_size": 20}', *REQUIRED]
        )


def test_digit_styles_is_counted_from_its_class(tmp_path):
    assert digit_styles_class(host.datasets.MultipleDomainDataset).N_STEPS == 301
    args = {"dataset": "DigitStyles", "algorithm": "ERM", "test_envs": [0], "holdout_fraction": 0.2}
    assert counting.count(args, {"batch_size": 16}, [1500] * 4).evaluated == 3 * 6000  # steps 0, 150, 300
