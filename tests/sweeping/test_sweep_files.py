"""Sweep files: their jobs, their launch, and the error of a bad file."""

import os
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.minibed.scripts import sweep as minibed_sweep
from domainbed_domainfusion.sweeping import host_scripts, sweep_files

from .. import forks

ROOT = Path(cli.__file__).parents[2]
LAUNCH = ["--data_dir", "data", "--output_dir", "runs", "--command_launcher", "dummy"]
GOOD = """\
# A comment, then the number of jobs.
# Jobs: 10

[first]
--algorithms ERM SAM   # two rows of a table
--datasets Debug28
--single_test_envs
--n_trials 1
--n_hparams 1
--hparams '{"lr": 0.001, "rho": 0.1}'

[first]
--algorithms DomainFusion
--datasets PACS
--single_test_envs
--n_trials 1
--n_hparams 1
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write `sweep.txt` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str = GOOD) -> Path:
        path = Path("sweep.txt")
        path.write_text(text)
        return path

    return write


@pytest.fixture
def calls(monkeypatch):
    """Records the calls of the host's scripts and the host's questions, which are answered with yes."""
    calls, questions = [], []
    monkeypatch.setattr(host_scripts, "run_host_script", lambda *call: calls.append(call) or 0)
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    return calls, questions


def test_a_file_is_the_hosts_arguments_and_nothing_else(file):
    first, second = sweep_files.read(file()).sweeps
    assert first.argv(LAUNCH) == [
        "--algorithms",
        "ERM",
        "SAM",
        "--datasets",
        "Debug28",
        "--single_test_envs",
        "--n_trials",
        "1",
        "--n_hparams",
        "1",
        "--hparams",
        '{"lr": 0.001, "rho": 0.1}',
        "--data_dir",
        "data",
        "--command_launcher",
        "dummy",
        "--output_dir",
        "runs/first",
    ]
    assert second.argv(LAUNCH)[-1] == "runs/first" and second.given().algorithms == ["DomainFusion"]


def test_the_parser_has_the_hosts_own_defaults():
    """Arguments that a file leaves out must have the same values in our parser and in the host's sweep."""
    theirs = vars(minibed_sweep.parse_arguments(["launch", *LAUNCH]))
    del theirs["command"]
    assert vars(sweep_files.parser().parse_args(LAUNCH)) == theirs


def run_by_the_host(command: str, monkeypatch, capsys) -> list[str]:
    """The lines that the host's own sweep prints for a command `python -m …` with the launcher dummy."""
    python, flag, module, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--command_launcher", "dummy", "--skip_confirmation"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    runpy.run_module(module, run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_lists_what_the_host_would(file, monkeypatch, capsys):
    """The printed command, run by the host, prints the same jobs. The dry run itself leaves no files."""
    path = file()
    assert cli.main(["sweep", "--dry-run", str(path), "--data_dir", "my data"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "sweep.txt: 10 jobs in 2 sweeps; nothing was launched." and os.listdir() == ["sweep.txt"]
    starts = [i for i, line in enumerate(printed) if line == "[first]"]
    for start, count in zip(starts, (6, 4)):
        jobs = printed[start + 3 : start + 3 + count]
        theirs = run_by_the_host(printed[start + 1], monkeypatch, capsys)
        assert len(jobs) == count and theirs[:count] == jobs and jobs[0].startswith("Not launched: runs/first/")
        counts = f"{count} jobs: 0 done, 0 incomplete, {count} not launched."
        assert theirs[count] == printed[start + 3 + count] == counts
    cli.main(["sweep", "--dry-run", str(path), "--data_dir", "my data"])  # the host has made the folders now
    assert "6 jobs: 0 done, 6 incomplete, 0 not launched." in capsys.readouterr().out


def test_launch_hands_each_sweep_to_the_host_and_asks_once(file, calls, capsys):
    assert cli.main(["sweep", "launch", str(file()), *LAUNCH, "--n_trials", "2"]) == 0
    calls, questions = calls
    assert questions == ["Are you sure? (y/n) "]
    after = [
        "--data_dir",
        "data",
        "--command_launcher",
        "dummy",
        "--n_trials",
        "2",
        "--skip_confirmation",
        "--output_dir",
        "runs/first",
    ]
    first, second = sweep_files.read(Path("sweep.txt")).sweeps
    assert calls == [("sweep", ["launch", *first.arguments, *after]), ("sweep", ["launch", *second.arguments, *after])]
    assert "[first] ERM SAM: 12 jobs: 0 done, 0 incomplete, 12 not launched." in capsys.readouterr().out


def test_launch_goes_on_after_a_sweep_with_failed_jobs(file, monkeypatch):
    statuses = [3, 0]
    monkeypatch.setattr(host_scripts, "run_host_script", lambda *call: statuses.pop(0))
    assert cli.main(["sweep", "launch", str(file()), *LAUNCH, "--skip_confirmation"]) == 3
    assert statuses == []


def test_a_sweep_with_nothing_to_do_does_not_start_the_hosts_script(file, calls, capsys):
    path, (calls, questions) = file(), calls
    first, second = (sweep.jobs(LAUNCH) for sweep in sweep_files.read(path).sweeps)
    for job in first:  # all jobs of the first sweep are done
        Path(job.output_dir).mkdir(parents=True)
        (Path(job.output_dir) / "done").write_text("done")
    cli.main(["sweep", "launch", str(path), *LAUNCH])
    assert [words[1][words[1].index("--algorithms") + 1] for words in calls] == ["DomainFusion"]
    calls.clear()
    cli.main(["sweep", "delete_incomplete", str(path), *LAUNCH])
    assert calls == [] and "There is nothing to delete." in capsys.readouterr().out

    Path(second[2].output_dir).mkdir(parents=True)  # begun and not finished
    for verb in ("launch", "delete_incomplete"):
        cli.main(["sweep", verb, str(path), *LAUNCH])
        assert [words[1][words[1].index("--algorithms") + 1] for words in calls] == ["DomainFusion"]
        calls.clear()
    for job in second:
        Path(job.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(job.output_dir) / "done").write_text("done")
    questions.clear()
    assert cli.main(["sweep", "launch", str(path), *LAUNCH]) == 0
    assert calls == questions == [] and capsys.readouterr().out.endswith("There is nothing to launch.\n")


def test_no_means_no(file, calls, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(SystemExit):
        cli.main(["sweep", "launch", str(file()), *LAUNCH])
    assert calls[0] == []


def test_a_launch_needs_what_the_hosts_sweep_needs(file, calls):
    with pytest.raises(InputError) as raised:
        cli.run(["sweep", "launch", str(file()), "--data_dir", "data"])
    assert str(raised.value) == (
        "`domainfusion sweep launch sweep.txt` lacks --output_dir, --command_launcher: add "
        "what the host's own sweep needs as well."
    )
    with pytest.raises(InputError, match="There is no command launcher called 'multi-gpu': did you mean"):
        cli.run(["sweep", "launch", str(file()), *LAUNCH[:-1], "multi-gpu"])
    with pytest.raises(InputError, match="`domainfusion sweep --dry-run` needs a sweep file: name one"):
        cli.run(["sweep", "--dry-run"])
    assert calls[0] == []


def test_a_checkout_that_is_not_attached_says_so(file, monkeypatch):
    monkeypatch.setattr(host, "NAME", "domainbed")
    monkeypatch.setitem(sys.modules, "domainbed", ModuleType("domainbed"))
    monkeypatch.setitem(sys.modules, "domainbed.algorithms", ModuleType("domainbed.algorithms"))
    sys.modules["domainbed.algorithms"].ALGORITHMS = ["ERM"]
    with pytest.raises(InputError, match="does not know DomainFusion yet: run `domainfusion attach .` in it once"):
        cli.run(["sweep", "--dry-run", str(file())])


SWEEP = "# Jobs: 4\n[a]\n--algorithms DomainFusion\n--datasets PACS\n--single_test_envs\n--n_trials 1\n--n_hparams 1\n"


@pytest.mark.parametrize(
    "text, sentence",
    [
        (SWEEP.replace("PACS", "PACZ"), "line 4: There is no dataset called 'PACZ': did you mean 'PACS'? ("),
        (
            SWEEP.replace("PACS", "office_home"),
            "line 4: There is no dataset called 'office_home': did you mean 'OfficeHome'? (",
        ),
        (
            SWEEP.replace("Fusion", "Fuson"),
            "line 3: There is no algorithm called 'DomainFuson': did you mean 'DomainFusion'? (",
        ),
        (
            SWEEP + """--hparams '{"candidate": 3}'""",
            "line 8: Nobody knows the hparam 'candidate' in --hparams: did you mean 'candidates'?",
        ),
        (
            SWEEP + """--hparams '{"rho": 0.1}'""",
            "line 8: no algorithm of this sweep (DomainFusion) has the hparam 'rho': take it out.",
        ),
        (
            SWEEP + """--hparams '{"strength": 7}'""",
            "line 8: The hparam strength is 7, but must be a number above 0 to 1: ",
        ),
        (
            SWEEP + """--hparams '{"freeze_bn": "false"}'""",
            "line 8: the hparam freeze_bn is 'false', but must be true or false like the host's default, false.",
        ),
        (SWEEP + """--hparams "{'lr': 1}" """, "line 8: --hparams is not JSON ("),
        (
            SWEEP + "--hparams {'lr': 1}",
            """line 8: --hparams takes one JSON object in single quotes, like --hparams '{"lr": 0.0001}'.""",
        ),
        (
            SWEEP + """--hparams '{"lr": 1}""",
            "line 8: the quotes are not closed (No closing quotation): write an argument and its values on one line.",
        ),
        (
            SWEEP + "--test_envs art_painting",
            "line 8: the host's sweep takes no --test_envs (PACS has no environment 'art_painting'; the nearest is 'A'): "  # noqa: E501
            "write --single_test_envs, which leaves out each environment in turn: A, C, P, S.",
        ),
        (SWEEP.replace("PACS", "TerraIncognita") + "--test_envs l430", "no environment 'l430'; the nearest is 'L43')"),
        (
            SWEEP + "--n_trial 3",
            "line 8: There is no argument of the host's sweep called '--n_trial': did you mean '--n_trials'? (",
        ),
        (SWEEP + "--steps many", "line 8: argument --steps: invalid int value: 'many'."),
        (SWEEP + "--steps 5 6", "line 8: unrecognized arguments: 6."),
        (SWEEP + "--n_trials 3", "line 8: --n_trials stands on line 6 already: leave one of the two."),
        (
            SWEEP + "--data_dir d",
            "line 8: --data_dir belongs to the launch: give it to `domainfusion sweep launch sweep.txt`.",
        ),
        (
            SWEEP + "steps 5",
            "line 8: 'steps 5' is neither [folder] nor an argument of the host's sweep (--name values) nor a # comment.",  # noqa: E501
        ),
        ("--steps 5\n" + SWEEP, "line 1: --steps stands before the first [folder]: begin a sweep first."),
        (
            SWEEP.replace("--single_test_envs\n", ""),
            "line 1: it states 4 jobs, but its sweeps make 10: mend the sweeps, or write `# Jobs: 10`.",
        ),
        (
            SWEEP.replace("--datasets PACS\n", ""),
            "line 2: the sweep [a] does not name its datasets: add a line like --datasets PACS.",
        ),
        (
            SWEEP.replace("--n_hparams 1", "--n_hparams 0"),
            "line 2: the sweep [a] makes no job: --n_trials must be at least 1 and --n_hparams above --n_hparams_from.",
        ),
        (
            SWEEP + SWEEP[10:],
            "line 8: [a] runs DomainFusion on PACS, as sweep.txt, line 2 does: collect_results would mix them; give one of "  # noqa: E501
            "the two a folder of its own.",
        ),
    ],
)
def test_a_bad_line_ends_with_one_sentence(file, text, sentence):
    with pytest.raises(InputError) as raised:
        sweep_files.read(file(text))
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith("sweep.txt, line ")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("# Jobs: 4\n", "sweep.txt holds no sweep: begin one with a line like [pacs-resnet50]."),
        (SWEEP.replace("# Jobs: 4", ""), "sweep.txt does not state how many jobs it makes: add the line `# Jobs: 4`."),
    ],
)
def test_a_file_that_lacks_something(file, text, sentence):
    with pytest.raises(InputError) as raised:
        sweep_files.read(file(text))
    assert str(raised.value) == sentence


def test_a_missing_file():
    with pytest.raises(InputError, match="There is no sweep file nowhere.txt that can be read"):
        sweep_files.read(Path("nowhere.txt"))


def test_the_same_sweep_may_stand_in_two_files_but_not_two_versions_of_it(file, capsys):
    first = file(SWEEP)
    second, third = Path("second.txt"), Path("third.txt")
    second.write_text("\n" + SWEEP)
    third.write_text(SWEEP + "--steps 7")
    assert cli.main(["sweep", "--check", str(first), str(second)]) == 0
    assert "2 files, 2 sweeps, 8 jobs (4 different): every name is known" in capsys.readouterr().out
    with pytest.raises(InputError, match="third.txt, line 2: .* as sweep.txt, line 2 does"):
        sweep_files.check([first, third])


def test_the_command_line_ends_with_the_sentence_alone(tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_text(SWEEP.replace("PACS", "PAC"))
    ended = forks.run("domainbed_domainfusion.cli", "sweep", "--dry-run", str(bad), folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"{bad}, line 4: There is no dataset called 'PAC': did you mean 'PACS'?")
