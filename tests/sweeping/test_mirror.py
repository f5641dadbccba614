"""`domainfusion sweep mirror`: what TensorBoard and Weights & Biases read back is what the jobs wrote."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.sweeping import mirror

ARGS = {"algorithm": "SAM", "dataset": "PACS", "test_envs": [3], "trial_seed": 1, "hparams_seed": 0, "output_dir": "x"}


def write_job(root: Path, number: int, steps: range, done: bool = False, **args) -> Path:
    folder = root / f"{number:032x}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.jsonl").open("a") as file:
        for step in steps:
            accuracies = {f"env{env}_{split}_acc": (step + env) / 1000 for env in range(4) for split in ("in", "out")}
            row = {"step": step, "loss": 1 / (step + 3), **accuracies, "name": "text", "flag": True}
            row |= {"hparams": {"lr": 1e-3}, "args": {**ARGS, **args}}
            file.write(json.dumps(row, sort_keys=True) + "\n")
    (folder / "out.txt").write_text("")
    if done:
        (folder / "done").write_text("done")
    return folder


def tensorboard_scalars(logs: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """run → column → (step, value), as TensorBoard itself reads them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for folder in sorted({path.parent for path in logs.rglob("events.out.*")}):
        accumulator = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        found[str(folder.relative_to(logs))] = {
            name: [(event.step, event.value) for event in accumulator.Scalars(name)]
            for name in accumulator.Tags()["scalars"]
        }
    return found


def test_tensorboard_has_every_number_of_every_row(tmp_path):
    pytest.importorskip("tensorboard")
    sweep = tmp_path / "sweep"
    write_job(sweep, 1, range(0, 900, 300))
    write_job(sweep, 2, range(0, 600, 300), done=True, algorithm="ERM", trial_seed=0)
    (sweep / f"{3:032x}").mkdir()  # its turn has not come
    command = ["sweep", "mirror", str(sweep), "--to", "tensorboard"]
    assert cli.main(command) == 0
    write_job(sweep, 1, range(900, 1500, 300), done=True)
    assert cli.main(command) == 0
    assert cli.main([*command]) == 0  # nothing is new, and nothing is written twice
    found = tensorboard_scalars(sweep / "tensorboard")
    assert sorted(found) == [
        "PACS/ERM/env3-trial0-hparams0-00000000",
        "PACS/SAM/env3-trial1-hparams0-00000000",
    ]
    sam = found["PACS/SAM/env3-trial1-hparams0-00000000"]
    assert sorted(sam) == [*(f"env{env}_{split}_acc" for env in range(4) for split in ("in", "out")), "loss"]
    assert [step for step, _ in sam["loss"]] == [0, 300, 600, 900, 1200]
    assert [value for _, value in sam["loss"]] == pytest.approx([1 / (step + 3) for step in range(0, 1500, 300)])
    assert len(found["PACS/ERM/env3-trial0-hparams0-00000000"]["loss"]) == 2


def test_watching_ends_when_every_job_is_done(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    write_job(tmp_path, 1, range(0, 600, 300))
    looks = []

    def a_while(seconds):
        looks.append(seconds)
        write_job(tmp_path, 1, range(600, 900, 300), done=True)

    monkeypatch.setattr(mirror.time, "sleep", a_while)
    mirror.mirror(tmp_path, tmp_path / "logs", mirror.TensorBoard(tmp_path / "logs"), watch=True)
    assert looks == [mirror.SECONDS]
    (run,) = tensorboard_scalars(tmp_path / "logs").values()
    assert [step for step, _ in run["loss"]] == [0, 300, 600]


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format behind a header of seven bytes."""
    block, position, record = 32768, 7, b""
    while position + 7 <= len(content):
        if block - position % block < 7:  # too little for a header: the rest of the block is padding
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def test_weights_and_biases_offline_has_the_rows_of_jobs_that_are_done(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    sweep = tmp_path / "sweep"
    write_job(sweep, 1, range(0, 900, 300), done=True)
    write_job(sweep, 2, range(0, 900, 300))
    for _ in range(2):
        assert cli.main(["sweep", "mirror", str(sweep), "--to", "wandb", "--project", "robust"]) == 0
    (file,) = (sweep / "wandb").rglob("run-*.wandb")
    rows, runs = [], []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            runs.append(record.run)
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append((items["_step"], items["loss"], items["env0_in_acc"]))
    assert rows == [(step, pytest.approx(1 / (step + 3)), step / 1000) for step in (0, 300, 600)]
    assert (runs[0].project, runs[0].run_group) == ("robust", "SAM")
    assert runs[0].display_name == "PACS/SAM/env3-trial1-hparams0-00000000"


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="No sweep folder at .*nothing"):
        mirror.mirror(tmp_path / "nothing", tmp_path, lambda job: None)
    write_job(tmp_path, 1, range(0, 600, 300))
    (tmp_path / "logs").mkdir()
    for content in ("[1]", "{", '{"a": "b"}'):
        (tmp_path / "logs" / "mirrored.json").write_text(content)
        with pytest.raises(
            InputError, match=r"mirrored.json cannot be read \(.*\): delete .*logs to copy all rows again"
        ):
            mirror.mirror(tmp_path, tmp_path / "logs", lambda job: None)
    for package, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        assert cli.main(["sweep", "mirror", str(tmp_path), "--to", package]) == 1
        assert (
            f"needs the package {package}: pip install 'domainbed-domainfusion[{package}]'" in capsys.readouterr().err
        )
