"""results.jsonl and model_step*.pkl of a replayed part: every row once, every file as it was."""

import json

from domainbed_domainfusion.resuming.model_files import ModelFiles
from domainbed_domainfusion.resuming.recorded_rows import RecordedRows


def line(step: int, loss: float = 0.5, step_time: float = 1.0) -> str:
    return json.dumps({"step": step, "loss": loss, "step_time": step_time, "args": {}}, sort_keys=True) + "\n"


def test_rows_after_the_checkpoint_and_torn_rows_are_cut(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line(0) + line(3) + line(6) + line(9)[:10])
    RecordedRows(path, updates=5)  # the checkpoint after step 4: row 3 stays, row 6 comes again
    assert path.read_text() == line(0) + line(3)
    RecordedRows(path, updates=4)  # after step 3: its own row is computed again
    assert path.read_text() == line(0)
    RecordedRows(path, updates=0)
    assert path.read_text() == ""


def test_a_replayed_row_is_compared_and_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line(0, step_time=7.0) + line(3))
    rows = RecordedRows(path, updates=5)
    for again in (line(0, step_time=0.1), line(3)):
        path.write_text(path.read_text() + again)
        assert rows.drop_replayed() is None
        assert path.read_text() == line(0, step_time=7.0) + line(3)
    path.write_text(path.read_text() + line(3, loss=0.6))
    assert rows.drop_replayed() == "step 3, loss"


def test_a_row_that_was_lost_is_kept_when_it_comes_again(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line(0))
    rows = RecordedRows(path, updates=5)
    path.write_text(path.read_text() + line(3))
    assert rows.drop_replayed() is None
    assert path.read_text() == line(0) + line(3)


def test_not_a_number_equals_itself(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line(0, float("nan")))
    rows = RecordedRows(path, updates=5)
    path.write_text(path.read_text() + line(0, float("nan")))
    assert rows.drop_replayed() is None


def test_the_step_time_of_the_last_row_can_be_amended(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(line(0) + line(3))
    rows = RecordedRows(path, updates=2)
    rows.amend(0, 2.0)
    assert path.read_text() == line(0, step_time=2.0)
    rows.amend(3, 9.0)  # not the last row
    assert path.read_text() == line(0, step_time=2.0)


def test_models_of_the_first_part_survive_a_replay_even_if_it_is_killed(tmp_path):
    job, aside = tmp_path, tmp_path / "aside"
    for step in (0, 3, 6):
        (job / f"model_step{step}.pkl").write_text(f"true {step}")
    models = ModelFiles(job, aside, updates=5)
    assert not (job / "model_step0.pkl").exists() and (job / "model_step6.pkl").read_text() == "true 6"
    (job / "model_step0.pkl").write_text("of a replay")
    models.put_back(all_of_them=False)
    assert (job / "model_step0.pkl").read_text() == "true 0" and not (job / "model_step3.pkl").exists()
    (job / "model_step3.pkl").write_text("of a replay that is killed now")
    models = ModelFiles(job, aside, updates=5)
    models.put_back(all_of_them=False)  # before the host comes to step 3 again
    (job / "model_step3.pkl").write_text("of the second replay")
    models.put_back(all_of_them=True)
    assert [(job / f"model_step{step}.pkl").read_text() for step in (0, 3)] == ["true 0", "true 3"]
