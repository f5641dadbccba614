"""Seconds, memory and disk from made-up counts and rates, each computed by hand."""

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import calibration, costs, counting, printout

from .made_up import job, rates


def test_a_setting_is_what_decides_the_time():
    base = {"batch_size": 16, "candidates": 3, "lr": 1e-4, "denoising_steps": 12, "strength": 0.8, "backbone": "a"}
    group = calibration.group_of(job(base))
    for same in ({"lr": 1e-3}, {"batch_size": 32}, {"candidates": 5}):
        assert calibration.group_of(job({**base, **same})) == group
    for other in ({"denoising_steps": 9}, {"strength": 0.5}, {"backbone": "b"}):
        assert calibration.group_of(job({**base, **other})) != group
    assert calibration.group_of(job(base, domains=2)) != group


def test_extreme_jobs_and_the_line_between_them():
    jobs = [job({"batch_size": b, "candidates": c}) for b, c in ((8, 5), (20, 1), (40, 3))]
    low, high = calibration.extreme_jobs(jobs)
    assert [point.hparams for point in (low, high)] == [
        {"batch_size": 8, "candidates": 1},
        {"batch_size": 40, "candidates": 5},
    ]
    assert len(calibration.extreme_jobs(jobs[:1] * 3)) == 1
    measured = calibration.GroupRates([(low, rates(step=1.0, kept=10.0)), (high, rates(step=5.0, kept=50.0))])
    assert measured.rate("step", jobs[1], "batch_size") == pytest.approx(2.5)
    assert measured.rate("kept", jobs[2], "candidates") == pytest.approx(30.0)
    assert measured.rate("step", jobs[1]) == 3.0


def test_seconds_of_a_job():
    """Each part by hand."""
    measured = calibration.GroupRates(
        [
            (
                job(),
                rates(
                    startup=5,
                    ended=1,
                    warm_up=2,
                    load=3,
                    raw_step=0.5,
                    step=1.0,
                    kept=0.25,
                    ld_gradient=0.125,
                    evaluated=0.01,
                    saving=6,
                ),
            )
        ]
    )
    made = counting.Job(
        {},
        {},
        steps=10,
        checkpoints=3,
        evaluated=300,
        rounds=2,
        kept=8,
        candidates=24,
        ld_gradients=16,
        raw_steps=4,
        domains=3,
    )
    assert costs.seconds(made, measured) == costs.Seconds(11, 8, 2, 2, 3, 6)
    assert costs.seconds(made, measured).total == 32


def test_the_generate_dataset_is_counted_in_memory_or_on_the_disk():
    """DomainNet's 410,000 images of 320 pixels are a file of 126 GB; 1,000 of them are 0.3 GB of memory."""
    hparams = {"image_size": 320, "save_generated": "none", "gallery": 0}
    measured = calibration.GroupRates([(job(), rates(ram_bytes=10**9))])
    counts = {"steps": 10, "checkpoints": 0, "evaluated": 0, "rounds": 2}
    small = counting.Job({}, hparams, kept=2 * 1000, **counts)
    large = counting.Job({}, hparams, kept=2 * 410_000, **counts)
    assert costs.ram_bytes(small, measured) == 10**9 + 1000 * 3 * 320 * 320
    assert costs.disk_bytes(small, measured) == 0
    assert costs.ram_bytes(large, measured) == 10**9
    assert costs.disk_bytes(large, measured) == 410_000 * 3 * 320 * 320 == 125_952_000_000
    assert costs.ram_bytes(job(), measured) == 10**9


def test_wall_clock():
    assert costs.wall_clock([3, 1, 2], 1) == 6
    assert costs.wall_clock([2] * 5, 2) == 6
    assert costs.wall_clock([3, 1, 2], 8) == 3
    # All six orders of jobs of 3, 1 and 2 seconds, two at a time: order → end of the last job, by hand.
    ends = {(3, 1, 2): 3, (3, 2, 1): 3, (1, 3, 2): 3, (2, 3, 1): 3, (1, 2, 3): 4, (2, 1, 3): 4}
    assert costs.wall_clock([3, 1, 2], 2) == pytest.approx(sum(ends.values()) / 6, abs=0.2)


def test_disk():
    """By hand: a model, three lines, two saved rounds of 4 images, a gallery of 2 images × 3 domains × 3 versions."""
    measured = calibration.GroupRates([(job(), rates(model_bytes=1000))])
    hparams = {"gallery": 2, "image_size": 8, "save_generated": "all"}
    made = job(hparams, checkpoints=3, rounds=2, kept=8, domains=3)
    assert costs.disk_bytes(made, measured) == 1000 + 3 * costs.LINE_BYTES + (8 + 18) * 192
    made.hparams["save_generated"] = "none"
    assert costs.disk_bytes(made, measured) == 1000 + 3 * costs.LINE_BYTES + 18 * 192


def test_multi_gpu_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="needs a GPU and this machine has none: give --command_launcher local"):
        calibration.conditions_of("multi_gpu", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,")
    environments = calibration.conditions_of("multi_gpu", 4).environments
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["1", "2"]


def test_durations_have_the_unit_that_fits():
    assert [printout.duration(s) for s in (41.4, 740, 19440, 1.1e6)] == ["41 s", "12.3 min", "5.4 h", "12.7 days"]
