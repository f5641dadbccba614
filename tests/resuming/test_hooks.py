"""When resuming attaches to the host, the variable that asks for it, and what it refuses."""

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming import fingerprint, generators, hooks, switch
from domainbed_domainfusion.resuming.replay import Replay, accuracy_record, update_record
from domainbed_domainfusion.seeding import preserved_rng

ON = "DOMAINFUSION_RESUME"


@pytest.mark.parametrize(
    "text, minutes",
    [
        (None, None),
        ("", None),
        ("0", None),
        ("off", None),
        ("1", 10.0),
        ("ON", 10.0),
        ("30", 30.0),
        ("0.5", 0.5),
        ("1.0", 1),
    ],
)
def test_the_variable_is_a_number_of_minutes(monkeypatch, text, minutes):
    monkeypatch.delenv(ON, raising=False) if text is None else monkeypatch.setenv(ON, text)
    assert switch.minutes() == minutes
    assert switch.is_off() == (text in ("0", "off"))
    assert switch.environment() == {ON: text or "on"}


@pytest.mark.parametrize("text", ["-1", "often", "nan", "inf"])
def test_a_senseless_number_of_minutes_is_bad_input(monkeypatch, text):
    monkeypatch.setenv(ON, text)
    with pytest.raises(InputError) as raised:
        switch.minutes()
    assert str(raised.value) == (
        f"DOMAINFUSION_RESUME={text!r} is not a number of minutes: set it to on (a checkpoint every 10 minutes), to a "
        "number of minutes such as 30, or to off."
    )


@pytest.mark.parametrize("script, resume", [("train", "off"), ("sweep", "on"), ("collect_results", "on")])
def test_nothing_is_attached_unless_a_training_asks(monkeypatch, as_script, tmp_path, script, resume):
    as_script(script, "--output_dir", str(tmp_path / "job"))
    monkeypatch.setenv(ON, resume)
    before = host.algorithms.get_algorithm_class, host.lib.misc.accuracy
    hooks.protect_training()
    assert (host.algorithms.get_algorithm_class, host.lib.misc.accuracy) == before
    assert not (tmp_path / "job").exists()


def test_a_done_job_ends_at_once_with_status_0(monkeypatch, as_script, tmp_path, capsys):
    as_script("train", "--output_dir", str(tmp_path))
    monkeypatch.setenv(ON, "on")
    (tmp_path / "done").write_text("done")
    with pytest.raises(SystemExit) as ended:
        hooks.protect_training()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"The job in {tmp_path} is done: nothing is left to train.\n"


def test_the_first_difference_of_two_runs_is_told():
    saved = {"arguments": {"seed": 0, "steps": 5}, "hparams": {"lr": 0.1}}
    assert fingerprint.difference(saved, saved) is None
    assert fingerprint.difference(saved, {**saved, "hparams": {"lr": 0.2}}) == "hparams lr: 0.1 there, 0.2 here"
    other = {**saved, "arguments": {"seed": 0}}
    assert fingerprint.difference(saved, other) == "arguments steps: 5 there, null here"


class _Network:
    def eval(self): ...

    def train(self): ...


def minibatch(value: float = 0.0):
    return [(torch.full((2, 3, 4, 4), value), torch.tensor([0, 1]))]


def test_a_replay_returns_what_was_recorded_and_draws_what_was_drawn():
    with preserved_rng():
        start = generators.state()
        torch.rand(3)
        first = update_record(0, {"loss": 0.1}, start, minibatch(), None, 1.0)
        middle = generators.state()
        list(torch.randperm(5))  # as the loader's sampler
        torch.rand(2)  # as a network that draws
        second = accuracy_record(0.75, middle)
        end = generators.state()

        generators.set_state(start)
        replay = Replay("folder", [first, second])
        assert replay.update(minibatch(), None) == {"loss": 0.1}
        assert generators.state() == middle
        assert replay.accuracy(_Network(), (torch.randperm(5) for _ in range(1))) == 0.75
        assert generators.state() == end


@pytest.mark.parametrize("wrong", ["images", "generators", "order"])
def test_a_replay_of_another_run_is_refused(wrong):
    with preserved_rng():
        start = generators.state()
        record = update_record(7, {}, start, minibatch(), None, 1.0)
        if wrong == "generators":
            torch.rand(1)
        replay = Replay("folder", [record])
        with pytest.raises(InputError, match=r"The checkpoints in folder cannot be continued: .*Put back what"):
            if wrong == "order":
                replay.accuracy(_Network(), [])
            else:
                replay.update(minibatch(float(wrong == "images")), None)
