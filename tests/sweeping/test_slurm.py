"""The launcher `slurm` without a cluster: the job's signals, its records, and the refusals. With one: `tests/slurm`."""

import importlib.util
import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.resuming.journal import Journal
from domainbed_domainfusion.sweeping import command, host_scripts, slurm_records, status
from domainbed_domainfusion.sweeping.launchers import slurm, slurm_job
from domainbed_domainfusion.sweeping.launchers.slurm_job import TrainingCommand

NAME = "0" * 31 + "1"


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def job_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    folder = tmp_path / "sweep" / NAME
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def slurm_programs(tmp_path, monkeypatch):
    """A function of a name and a shell text that puts a stand-in for a program of Slurm first on PATH."""
    folder = tmp_path / "programs"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda name, text: program(folder, name, text)


def events(folder: Path) -> list[str]:
    return [event["event"] for event in slurm_records.read(folder)]


def in_background(command: TrainingCommand) -> tuple[threading.Thread, list]:
    """Runs the command in a thread; the list gets what it raises."""
    raised: list = []

    def run():
        try:
            command()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def until_written(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_a_job_has_checkpoints_and_records_its_beginning_and_end(job_folder, monkeypatch):
    monkeypatch.delenv("DOMAINFUSION_RESUME", raising=False)
    TrainingCommand(f"sh -c 'printenv DOMAINFUSION_RESUME > {job_folder}/resume.txt'", job_folder, 60)()
    assert (job_folder / "resume.txt").read_text() == "on\n"
    assert events(job_folder) == ["started", "ended"]
    assert {event["slurm_job"] for event in slurm_records.read(job_folder)} == {"17_3"}


def test_a_job_that_fails_raises_with_its_status(job_folder):
    with pytest.raises(RuntimeError, match="ended with status 4; .*err.txt may say why"):
        TrainingCommand("sh -c 'exit 4'", job_folder, 60)()
    assert events(job_folder) == ["started", "failed"]
    assert slurm_records.read(job_folder)[-1]["status"] == 4


def test_at_the_limit_the_training_itself_gets_the_signal_and_is_waited_for(job_folder, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm_job, "WAIT_FOR_SLURM_SECONDS", 0.01)
    script = job_folder / "train.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        f"here = pathlib.Path({str(job_folder)!r})\n"
        "def stop(*_):\n    time.sleep(0.5)\n    (here / 'checkpoint').touch()\n    sys.exit(140)\n"
        "signal.signal(signal.SIGUSR2, stop)\n(here / 'ready').touch()\ntime.sleep(60)\n"
    )
    command = TrainingCommand(f"{sys.executable} {script}", job_folder, 60)
    thread, _ = in_background(command)
    until_written(job_folder / "ready")
    again = command.checkpoint()
    assert (job_folder / "checkpoint").exists()
    assert "interrupted" in events(job_folder)
    assert again.function is command
    thread.join()  # the thread goes on where Slurm would have ended it


def test_a_step_that_takes_too_long_is_killed_so_that_the_job_can_queue_again(job_folder, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm_job, "SPARE_SECONDS", 59.5)
    command = TrainingCommand(f"sh -c 'trap \"\" USR2; touch {job_folder}/ready; sleep 60 & wait'", job_folder, 60)
    thread, raised = in_background(command)
    until_written(job_folder / "ready")
    begun = time.monotonic()
    command.checkpoint()
    assert time.monotonic() - begun < 20
    thread.join()
    assert "status -9" in str(raised[0])


def test_a_job_that_slurm_stops_itself_waits_for_slurm(job_folder, monkeypatch):
    monkeypatch.setattr(slurm_job, "WAIT_FOR_SLURM_SECONDS", 0.01)
    for status_of_shell in (128 + signal.SIGTERM, 128 + signal.SIGUSR2):
        with pytest.raises(RuntimeError):
            TrainingCommand(f"sh -c 'exit {status_of_shell}'", job_folder, 60)()
    assert events(job_folder) == ["started", "interrupted", "failed"] * 2


def test_what_submitit_saves_of_a_job_holds_no_process(job_folder):
    command = TrainingCommand("true", job_folder, 60)
    command()
    restored = pickle.loads(pickle.dumps(command))
    assert (restored.command, restored.job_folder, restored.signal_seconds) == ("true", job_folder, 60)
    assert restored._process is None
    restored()


def test_the_queue_is_what_squeue_prints(slurm_programs, tmp_path):
    slurm_programs("squeue", f'echo "$@" > {tmp_path}/asked; echo "17_3 PENDING"; echo "9 RUNNING"')
    assert slurm_records.queue(["17_3", "17_4", "9"]) == {"17_3": "PENDING", "9": "RUNNING"}
    assert "--jobs=9,17" in (tmp_path / "asked").read_text()
    slurm_programs("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm_records.queue(["17_3"]) == {}
    slurm_programs("squeue", "echo 'error: unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(InputError, match="cannot be asked .*unable to contact slurm controller.*: run this where"):
        slurm_records.queue(["17_3"])
    assert slurm_records.queue([]) == {}


def test_a_damaged_record_is_passed_over(job_folder):
    slurm_records.append(job_folder, "submitted", "17_3")
    with (job_folder.parent / "slurm" / f"{NAME}.jsonl").open("a") as file:
        file.write('[1]\n{"event": "started"}\n\n{"event": "sta')
    assert events(job_folder) == ["submitted"]


def test_status_joins_files_and_queue(slurm_programs, tmp_path, capsys):
    root = tmp_path / "sweep"
    stories = {
        1: (["submitted"], "PENDING", "queued"),
        2: (["submitted", "started", "interrupted"], "PENDING", "queued"),
        3: (["submitted", "started"], "RUNNING", "running"),
        4: (["submitted", "started", "failed"], None, "failed"),
        5: (["submitted"], None, "stopped"),  # cancelled, or its set-up failed
        6: (["submitted", "started", "interrupted", "started"], None, "stopped"),
        7: (["submitted", "started", "ended"], None, "done"),
        8: ([], None, "waiting"),
        9: (["submitted", "started", "interrupted"], "COMPLETING", "queued"),
    }
    lines = []
    for number, (names, in_queue, _) in stories.items():
        folder = root / f"{number:032x}"
        folder.mkdir(parents=True)
        for name in names:
            slurm_records.append(folder, name, f"17_{number}", **({"status": -9} if name == "failed" else {}))
        if "started" in names:
            Journal(folder / "resume" / "journal").close()
        if "ended" in names:
            (folder / "done").write_text("done")
        if in_queue:
            lines.append(f"echo 17_{number} {in_queue}")
    (root / "slurm" / "17_5_0_log.err").write_text("bash: module: command not found\n")
    slurm_programs("squeue", "\n".join(lines))
    found = {int(job.folder, 16): job for job in status.status(root)}
    assert {number: job.state for number, job in found.items()} == {
        number: state for number, (_, _, state) in stories.items()
    }
    assert (found[2].interrupted, found[4].exit_status) == (1, -9)
    assert found[5].line() == f"stopped  {5:032x}: last error: bash: module: command not found"
    assert found[2].line() == f"queued   {2:032x}: interrupted once"
    assert found[4].line() == f"failed   {4:032x}: ended with status -9"

    slurm_programs("squeue", "exit 3")  # now only the files count, and a line says so
    states = {int(job.folder, 16): job.state for job in status.status(root)}
    assert "Slurm cannot be asked (status 3)" in capsys.readouterr().err
    assert [states[number] for number in (1, 3, 4, 7)] == ["waiting", "stopped", "failed", "done"]


def train(root: Path, number: int) -> str:
    return f"python -m x.train --output_dir {root}/{number:032x}"


def test_jobs_in_the_queue_are_not_submitted_again(slurm_programs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        slurm_programs(name, "exit 1")
    slurm_programs("scontrol", "echo 'MaxArraySize            = 4'")
    slurm_programs("squeue", "echo 17_1 PENDING; echo 17_2 RUNNING")
    for number in (1, 2, 3):
        slurm_records.append(tmp_path / f"{number:032x}", "submitted", f"17_{number}")
    submitted = []
    monkeypatch.setattr(slurm, "_submit", lambda commands, *_: submitted.append(commands) or ["18_0", "18_1"])
    slurm.launch([train(tmp_path, number) for number in range(1, 9)])
    assert submitted == [[train(tmp_path, number) for number in part] for part in ((3, 4, 5), (6, 7, 8))]
    assert "2 jobs are in Slurm's queue already" in capsys.readouterr().out
    submitted.clear()
    slurm.launch([train(tmp_path, number) for number in (1, 2)])
    assert submitted == []


def test_what_slurm_refuses_is_said_and_nothing_is_recorded(slurm_programs, tmp_path):
    pytest.importorskip("submitit")
    for name in ("srun", "squeue", "scontrol"):
        slurm_programs(name, "exit 0")
    slurm_programs("sbatch", "echo 'sbatch: error: invalid partition specified: low' >&2; exit 1")
    with pytest.raises(InputError, match="Slurm refused the jobs .*invalid partition specified: low.*: correct the"):
        slurm.launch([train(tmp_path, 1), train(tmp_path, 2)])
    assert slurm_records.read(tmp_path / f"{1:032x}") == []


def test_without_submitit_or_slurm_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("submitit"):
        with pytest.raises(InputError, match="no Slurm on this machine .*sbatch, srun, squeue, scontrol not found"):
            slurm.launch([train(tmp_path, 1)])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs the package submitit: pip install 'domainbed-domainfusion\[slurm\]'"):
        slurm.launch([train(tmp_path, 1)])
    slurm.launch([])


def test_the_record_is_one_line_of_json(job_folder):
    slurm_records.append(job_folder, "started", "17_3", node="n1")
    record = json.loads((job_folder.parent / "slurm" / f"{NAME}.jsonl").read_text())
    assert (record["event"], record["slurm_job"], record["node"]) == ("started", "17_3", "n1")
    assert abs(record["at"] - time.time()) < 60


def test_the_settings_beside_a_sweep_file_reach_the_launcher(tmp_path, monkeypatch):
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("# Jobs: 6\n[one]\n--algorithms ERM\n--datasets Debug28\n--n_hparams 1\n--n_trials 1\n")
    (tmp_path / "slurm.toml").write_text("gpus = -1")
    monkeypatch.setenv("DOMAINFUSION_SLURM", "")
    seen = []
    monkeypatch.setattr(host_scripts, "run_host_script", lambda *_: seen.append(os.environ["DOMAINFUSION_SLURM"]) or 0)
    words = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "runs"), "--skip_confirmation"]
    with pytest.raises(InputError, match="gpus = -1"):
        command.launch("launch", sweep, [*words, "--command_launcher", "slurm"])
    assert command.launch("launch", sweep, [*words, "--command_launcher", "cores"]) == 0
    (tmp_path / "slurm.toml").write_text("gpus = 0")
    assert command.launch("launch", sweep, [*words, "--command_launcher", "slurm"]) == 0
    assert seen == ["", str(tmp_path / "slurm.toml")]
