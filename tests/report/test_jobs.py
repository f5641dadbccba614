"""The rows of a job as they are in its file, in little memory."""

import json

from domainbed_domainfusion.report.jobs import read_job

from .made_up import write_job


def test_rows_are_those_of_the_file_and_equal_args_lie_in_memory_once(tmp_path):
    folder = write_job(tmp_path, "PACS", "DomainFusion", [0], hparams=json.dumps({"lr": 0.1}))
    lines = (folder / "results.jsonl").read_text().splitlines()
    other = json.loads(lines[3])
    other["args"]["trial_seed"] = 5  # a job that was continued with other arguments, say
    lines[3] = json.dumps(other)
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")

    rows = read_job(folder).rows
    assert rows == [json.loads(line) for line in lines]
    assert [list(row) for row in rows] == [list(json.loads(line)) for line in lines]
    assert [row["args"] is rows[0]["args"] for row in rows] == [True] * 3 + [False] + [True] * 3
    assert all(row["hparams"] is rows[0]["hparams"] for row in rows)
    assert all(a is b for first, last in [(rows[0], rows[-1])] for a, b in zip(sorted(first), sorted(last)))
