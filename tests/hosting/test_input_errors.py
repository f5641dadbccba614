"""InputError: an ordinary exception in Python, one sentence and status 1 on every command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed_domainfusion import register
from domainbed_domainfusion.errors import InputError, exit_status, sentence_hook
from domainbed_domainfusion.hosting import host

from .. import forks


def train(folder: Path, algorithm: str, **hparams) -> subprocess.CompletedProcess:
    """One step of the host's train script in a process of its own; its job folder is `folder`."""
    arguments = ["--algorithm", algorithm, "--dataset", "Debug28", "--steps", "1", "--output_dir", str(folder)]
    arguments += ["--hparams", json.dumps({"batch_size": 4, **hparams})]
    return forks.run(f"{host.NAME}.scripts.train", *arguments)


def test_a_notebook_can_catch_it(tmp_path):
    caught = None
    try:
        host.algorithms.DomainFusion(
            (3, 28, 28),
            2,
            3,
            {**host.hparams_registry.default_hparams("DomainFusion", "Debug28"), "ldm": str(tmp_path)},
        )
    except Exception as error:
        caught = error
    assert isinstance(caught, InputError) and str(caught).startswith(f"The latent diffusion model in {tmp_path}")


def test_a_train_run_ends_with_the_sentence_in_its_err_txt(tmp_path):
    """The algorithm is built after train has replaced sys.stderr by a stream that also writes err.txt."""
    ended = train(tmp_path / "job", "DomainFusion", ldm=str(tmp_path))
    written = (tmp_path / "job" / "err.txt").read_text()
    assert ended.returncode == 1
    assert written.startswith(f"The latent diffusion model in {tmp_path} is incomplete") and written.count("\n") == 1
    assert written in ended.stdout + ended.stderr and "Traceback" not in ended.stdout + ended.stderr
    assert not (tmp_path / "job" / "results.jsonl").exists()


def test_a_defect_keeps_its_traceback(tmp_path):
    (tmp_path / "job" / "results.jsonl").mkdir(parents=True)
    ended = train(tmp_path / "job", "ERM")
    lines = (tmp_path / "job" / "err.txt").read_text().splitlines()
    assert ended.returncode == 1 and lines[0].startswith("Traceback") and lines[-1].startswith("IsADirectoryError")


def test_a_command_line_prints_the_sentence_and_returns_1(capsys):
    def bad():
        raise InputError("The input is bad: give another.")

    assert [exit_status(bad), exit_status(lambda: None), exit_status(lambda: 3)] == [1, 0, 3]
    assert capsys.readouterr().err == "The input is bad: give another.\n"
    with pytest.raises(ValueError):
        exit_status(lambda: int("x"))


def test_the_hook_passes_every_other_exception_on(capsys):
    passed = []
    hook = sentence_hook(lambda *exception: passed.append(exception))
    hook(InputError, InputError("The input is bad: give another."), None)
    error = KeyboardInterrupt()
    hook(KeyboardInterrupt, error, None)
    assert passed == [(KeyboardInterrupt, error, None)]
    assert capsys.readouterr().err == "The input is bad: give another.\n"


def test_the_hook_is_set_once_and_only_in_the_hosts_scripts(monkeypatch, as_script):
    def former(*exception):
        pass

    monkeypatch.setattr(sys, "excepthook", former)
    register.print_input_errors_as_sentences()
    assert sys.excepthook is former  # pytest is no script of the host
    as_script("train")
    register.print_input_errors_as_sentences()
    first = sys.excepthook
    register.print_input_errors_as_sentences()
    assert sys.excepthook is first and first is not former
