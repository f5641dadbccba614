"""`domainfusion sweep status`: the state of each job, from the files that the jobs themselves leave."""

import json
import subprocess
import sys
import time

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.resuming.journal import Journal
from domainbed_domainfusion.sweeping import status

ROW = {"args": {"algorithm": "SAM", "dataset": "PACS", "test_envs": [3], "trial_seed": 1}, "loss": 0.5}
HOLD = "from domainbed_domainfusion.resuming.job_lock import JobLock; from pathlib import Path; import sys, time; "
HOLD += "lock = JobLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def job(root, number, *steps, done=False, updates=None, err="", out=""):
    folder = root / f"{number:032x}"
    folder.mkdir(parents=True)
    rows = [json.dumps({**ROW, "step": step, "padding": "x" * 3000}, sort_keys=True) for step in steps]
    if rows:
        (folder / "results.jsonl").write_text("".join(row + "\n" for row in rows))
    for name, content in (("err.txt", err), ("out.txt", out), ("done", "done" if done else "")):
        if content:
            (folder / name).write_text(content)
    if updates is not None:
        journal = Journal(folder / "resume" / "journal")
        for update in range(updates):
            journal.append({"update": update, "change": "y" * 500})
        journal.append({"accuracy": 0.5})
        journal.close()
    return folder


def by_number(root):
    return {int(each.folder, 16): each for each in status.status(root)}


def test_each_state_is_told_from_the_files(tmp_path):
    job(tmp_path, 1, 0, 100, 299, done=True, updates=None)
    job(tmp_path, 2, 0, 100, updates=173, out="Continued after step 90 from x\nloss\nContinued after step 150 from x\n")
    job(tmp_path, 3, err="Traceback\nRuntimeError: out of memory\n\n", updates=0)
    job(tmp_path, 4)
    job(tmp_path, 5, 0, 100, err="a warning\n")
    (tmp_path / "no job").mkdir()
    found = by_number(tmp_path)
    assert {number: each.state for number, each in found.items()} == {
        1: "done", 2: "stopped", 3: "stopped", 4: "waiting", 5: "unknown"
    }  # fmt: skip
    assert [found[number].step for number in (1, 2, 3, 4, 5)] == [299, 172, None, None, 100]
    assert found[2].line() == "stopped  SAM on PACS, test_envs 3, trial 1: step 172, continued 2 times"
    assert found[3].line().endswith("last error: RuntimeError: out of memory")


def test_a_job_runs_as_long_as_its_process_lives(tmp_path):
    folder = job(tmp_path, 7, 0, updates=3)
    assert by_number(tmp_path)[7].state == "stopped"
    command = [sys.executable, "-c", HOLD, str(folder / "resume")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert by_number(tmp_path)[7].state == "running"
        process.kill()
        process.wait()
    assert by_number(tmp_path)[7].state == "stopped"


@pytest.mark.parametrize("content", ["", "{", '{"args": {}}\n', '{"step": 1}\n', "\x00\xff\n"])
def test_damaged_rows_and_journals_end_in_no_traceback(tmp_path, content):
    folder = job(tmp_path, 1, updates=0)
    (folder / "results.jsonl").write_text(content)
    (folder / "resume" / "journal").write_text("00000000 {\n" + content)
    assert by_number(tmp_path)[1].state == "stopped"


def test_the_table_counts_every_job(tmp_path, capsys):
    for number in range(4):
        job(tmp_path, number, 299, done=True)
    job(tmp_path, 4, 100, updates=101)
    job(tmp_path, 5)
    assert cli.main(["sweep", "status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["done", "stopped", "waiting"]
    assert [line.split()[-3:] for line in lines[1:4]] == [["0", "0", "1"], ["4", "1", "0"], ["4", "1", "1"]]
    assert len(lines) == 5 and lines[4].startswith("stopped  SAM on PACS")
    assert cli.main(["sweep", "status", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6


def test_watching_ends_when_no_job_runs_or_waits(tmp_path, monkeypatch, capsys):
    waiting = job(tmp_path, 1)
    looks = []

    def finish(seconds):
        looks.append(seconds)
        (waiting / "done").write_text("done")

    monkeypatch.setattr(time, "sleep", finish)
    assert cli.main(["sweep", "status", str(tmp_path), "--watch"]) == 0
    assert looks == [status.SECONDS] and capsys.readouterr().out.count("all ") == 2


def test_folders_without_jobs(tmp_path):
    with pytest.raises(InputError, match="No job in"):
        status.status(tmp_path)
    with pytest.raises(InputError, match="No sweep folder"):
        status.status(tmp_path / "nowhere")


def test_it_is_quick_to_start(tmp_path):
    """It is asked often, on a machine that others use too."""
    job(tmp_path, 1, 0, done=True)
    program = (
        "import sys; from domainbed_domainfusion import cli; status = cli.main(['sweep', 'status', sys.argv[1]]); "
    )
    program += "print(status, sorted({'torch', 'numpy', 'diffusers', 'domainbed'} & set(sys.modules)))"
    asked = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert asked.stdout.splitlines()[-1] == "0 []"
