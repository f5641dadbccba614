"""A made-up hparam of every kind: its row alone decides which keys and identities it changes."""

import pytest
import torch

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.estimate import calibration, counting
from domainbed_domainfusion.generated.identity import candidate_identity, run_identity
from domainbed_domainfusion.hosting import host, hparam, hparams
from domainbed_domainfusion.runs import generate


def identities(values: dict) -> dict[str, object]:
    """Every identity that is derived from the hparams of a DomainFusion run."""
    ldm = LatentDiffusion.load("pocket", device="cpu")
    job = counting.Job({"dataset": "DigitStyles", "algorithm": "DomainFusion"}, values, 10, 2, 100)
    model = {"name": "pocket", "revision": None, "sha256": "1"}
    return {
        "candidate": candidate_identity(values, ldm),
        "run": run_identity(values, torch.device("cpu")),
        "provenance": generate.settings_of(values, model),
        "calibration": calibration.group_of(job),
    }


@pytest.fixture
def changed(monkeypatch):
    """Returns the identities that differ between two values of a made-up hparam with the given row."""

    def compare(changes: tuple[str, ...], time: str = hparam.NO_TIME) -> set[str]:
        row = hparam.Hparam(
            name="made_up",
            default=1,
            range=hparam.integer(1),
            meaning="nothing",
            source="the test",
            changes=changes,
            time=time,
        )
        monkeypatch.setitem(hparams.ROWS, "made_up", row)
        values = host.hparams_registry.default_hparams("DomainFusion", "DigitStyles")
        one, other = (identities({**values, "made_up": value}) for value in (1, 2))
        return {name for name in one if one[name] != other[name]}

    return compare


@pytest.mark.parametrize(
    "part, expected",
    [
        (hparam.CLASSIFIER, {"run"}),
        (hparam.ROUNDS, {"run"}),
        (hparam.CANDIDATES, {"candidate", "run", "provenance"}),
        (hparam.CHOICE, {"run", "provenance"}),
        (hparam.LD, {"run"}),
        (hparam.SCORES, {"run"}),
        (hparam.SPEED, set()),
        (hparam.KEPT, set()),
    ],
)
def test_what_each_kind_changes(changed, part, expected):
    assert changed((part,)) == expected
    assert changed((part,), hparam.TIME) == expected | {"calibration"}
    assert changed((part,), hparam.PROPORTIONAL) == expected


def test_a_hparam_of_two_kinds_changes_what_both_change(changed):
    assert changed((hparam.SPEED, hparam.CHOICE)) == {"run", "provenance"}
    assert changed((hparam.KEPT, hparam.CANDIDATES)) == {"candidate", "run", "provenance"}


def test_an_hparam_of_the_host_changes_the_run():
    values = host.hparams_registry.default_hparams("DomainFusion", "DigitStyles")
    one, other = (identities({**values, "resnet_dropout": value}) for value in (0.0, 0.5))
    assert {name for name in one if one[name] != other[name]} == {"run"}


def test_every_row_says_what_it_changes_in_known_words():
    for row in hparams.ROWS.values():
        assert row.changes and set(row.changes) <= set(hparam.PARTS) and row.time in hparam.TIMES, row.name
