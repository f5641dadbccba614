"""The command line: each verb calls its function, bad input is one sentence and status 1."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from domainbed_domainfusion import cli, report
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import attach, host
from domainbed_domainfusion.sweeping import host_scripts, quickstart, sweep_files

from . import forks

ROOT = Path(cli.__file__).parents[2]


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def data_folders(monkeypatch) -> list[str]:
    """Where the quickstart would have drawn DigitStyles."""
    folders = []
    monkeypatch.setattr(quickstart, "load_images", folders.append)
    return folders


def command_line(*arguments: str) -> subprocess.CompletedProcess:
    """`domainfusion` in a process of its own."""
    return forks.run("domainbed_domainfusion.cli", *arguments)


def test_sweep_hands_every_argument_to_the_host(monkeypatch):
    calls = []
    monkeypatch.setattr(host_scripts, "run_host_script", lambda *call: calls.append(call) or 0)
    given = ["launch", "--algorithms", "ERM", "SAM", "--hparams", '{"lr": -1}', "--version", "-h"]
    assert cli.main(["sweep", *given]) == 0
    assert cli.main(["sweep", "--help"]) == 0
    assert calls == [("sweep", given), ("sweep", ["--help"])]


def test_sweep_help_tells_of_sweep_files_before_the_hosts_own():
    ended = command_line("sweep", "--help")
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    ours, _, hosts = ended.stdout.partition("The host's own help:\n")
    for words in (
        "launch FILE --data_dir D --output_dir O --command_launcher L",
        "delete_incomplete FILE",
        "--dry-run FILE",
        "--check FILE",
        "status 0",
    ):
        assert words in ours
    assert hosts.lstrip().startswith("usage:") and "--skip_confirmation" in hosts


def test_help_beside_a_sweep_file_is_ours_alone(monkeypatch, capsys):
    monkeypatch.setattr(host_scripts, "run_host_script", lambda *call: pytest.fail("the host was called"))
    for words in (
        ["--dry-run", "--help"],
        ["--check", "-h"],
        ["launch", "some.txt", "--help"],
        ["--dry-run", "x", "-h"],
    ):
        assert cli.main(["sweep", *words]) == 0
        assert "--dry-run FILE" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["launch", "--algorithms", "ERM", "--help"]], ids=" ".join)
def test_estimate_has_help_of_its_own(words, capsys):
    """It names every argument that an estimate takes, and no other."""
    assert cli.main(["estimate", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: domainfusion estimate") and "FILE" in shown and "calibration" in shown
    taken = {action.option_strings[0] for action in sweep_files.parser()._actions} | {"--json", "--help"}
    assert set(re.findall(r"--\w+", shown)) == taken


def test_sweep_returns_the_hosts_status(monkeypatch):
    monkeypatch.setattr(host_scripts, "run_host_script", lambda *call: 2)
    assert cli.main(["sweep", "launch"]) == 2


@pytest.mark.parametrize("flags, called", [([], "attach"), (["--check"], "check"), (["--detach"], "detach")])
def test_attach_calls_one_of_three(monkeypatch, flags, called):
    calls = []
    for name in ("attach", "check", "detach"):
        monkeypatch.setattr(attach, name, lambda path, name=name: calls.append((name, path)) or 0)
    assert cli.main(["attach", "some/checkout", *flags]) == 0
    assert calls == [(called, Path("some/checkout"))]


def test_report_prints_what_it_wrote(monkeypatch, capsys):
    monkeypatch.setattr(report, "write", lambda folder, output: [folder, output])
    assert cli.main(["report", "--input_dir", "sweep", "--output", "a.html"]) == 0
    assert capsys.readouterr().out == "sweep\na.html\n"


def test_bad_input_is_one_sentence_on_stderr_and_status_1(tmp_path):
    ended = command_line("report", "--input_dir", str(tmp_path / "nowhere"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"No sweep folder at {tmp_path}/nowhere: give --input_dir the --output_dir of a sweep.\n"


def test_help_lists_the_verbs_that_work_and_no_other():
    ended = command_line("--help")
    assert ended.returncode == 0
    verbs = [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("    ") and line[4:5].isalpha()]
    known = ["quickstart", "sweep", "estimate", "attach", "report", "compare", "keep", "figures", "ld-curve"]
    known += ["data", "predict", "generate", "search-timesteps"]
    assert verbs == known
    assert command_line().returncode == 2


def _made(folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    return 0


@pytest.mark.parametrize("trials", [[], ["--n_trials", "3"]], ids=str)
def test_quickstart_sweeps_collects_and_reports(monkeypatch, tmp_path, capsys, data_folders, trials):
    calls = []
    monkeypatch.setattr(quickstart, "run_host_script", lambda *call: calls.append(call) or _made(tmp_path / "sweep"))
    monkeypatch.setattr(report, "write", lambda folder, output: calls.append((folder, output)) or [output])
    assert cli.main(["quickstart", "--output_dir", str(tmp_path), *trials]) == 0
    arguments = quickstart.sweep_arguments(tmp_path / "sweep", tmp_path / "data", int((trials or ["1"])[-1]))
    assert data_folders == [str(tmp_path / "data")]
    assert calls == [
        ("sweep", ["launch", *arguments]),
        ("collect_results", ["--input_dir", f"{tmp_path}/sweep"]),
        (tmp_path / "sweep", tmp_path / "report.html"),
    ]
    assert f"{tmp_path}/report.html\nwritten after 0.0 minutes" in capsys.readouterr().out


@pytest.mark.parametrize("resume, verbs", [("", ["launch"]), ("off", ["delete_incomplete", "launch"])])
def test_quickstart_continues_after_an_interruption(monkeypatch, tmp_path, resume, verbs):
    """The launcher cores takes up incomplete jobs, unless resuming is off."""
    monkeypatch.setenv("DOMAINFUSION_RESUME", resume)
    calls = []
    monkeypatch.setattr(quickstart, "run_host_script", lambda script, arguments: calls.append(arguments[0]) or 0)
    monkeypatch.setattr(report, "write", lambda folder, output: [output])
    (tmp_path / "sweep").mkdir()
    quickstart.quickstart(tmp_path)
    assert calls == [*verbs, "--input_dir"]


def test_quickstart_writes_the_page_and_returns_the_status_when_jobs_failed(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(quickstart, "run_host_script", lambda *call: 1)
    monkeypatch.setattr(report, "write", lambda folder, output: written.append(output) or [output])
    assert quickstart.quickstart(tmp_path / "never started") == 1
    assert written == []
    (tmp_path / "sweep").mkdir()
    assert quickstart.quickstart(tmp_path) == 1
    assert written == [tmp_path / "report.html"]


def test_quickstart_in_a_checkout_that_is_not_attached_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "NAME", "domainbed")
    monkeypatch.setitem(sys.modules, "domainbed", ModuleType("domainbed"))
    monkeypatch.setitem(sys.modules, "domainbed.algorithms", ModuleType("domainbed.algorithms"))
    sys.modules["domainbed.algorithms"].ALGORITHMS = ["ERM"]
    with pytest.raises(InputError, match="does not know DomainFusion yet: run `domainfusion attach .` in it once"):
        quickstart.quickstart(tmp_path)


def test_the_hosts_sweep_accepts_quickstarts_arguments(monkeypatch, tmp_path, capsys):
    """Twelve jobs a trial: three algorithms by four environments, each with the shared hparams."""
    arguments = quickstart.sweep_arguments(tmp_path / "sweep", tmp_path / "data", n_trials=2)
    arguments[arguments.index("cores")] = "dummy"
    monkeypatch.setattr(sys, "argv", ["sweep", "launch", *arguments])
    runpy.run_module(f"{host.NAME}.scripts.sweep", run_name="__main__")
    printed = capsys.readouterr().out
    commands = [
        host_scripts.command_options(line) for line in printed.splitlines() if line.startswith("Dummy launcher")
    ]
    assert {(options["algorithm"], options["test_envs"], options["trial_seed"]) for options in commands} == {
        (algorithm, str(env), trial)
        for algorithm in ("ERM", "SAM", "DomainFusion")
        for env in range(4)
        for trial in "01"
    }
    assert all(json.loads(options["hparams"]) == quickstart.QUICKSTART_HPARAMS for options in commands)
