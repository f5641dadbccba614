"""`benchmarks.paper_size`: the made-up jobs are those that the host's sweep would launch, and are whole."""

from benchmarks import paper_size
from domainbed_domainfusion.report.jobs import read_sweep
from domainbed_domainfusion.sweeping import status, sweep_files


def test_the_made_up_jobs_are_done_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_size, "_measured", lambda command: (1.0, 2 * 10**9))
    path = paper_size.SWEEPS / "cost-table.txt"
    results = paper_size.run(tmp_path, [path], checkpoints=3)
    arguments = ["--data_dir", "data", "--output_dir", str(tmp_path / "runs")]
    jobs = [job for sweep in sweep_files.read(path).sweeps for job in sweep.jobs(arguments)]
    assert {job.state for job in jobs} == {type(jobs[0]).DONE}
    assert {job.state for job in status.status(tmp_path / "together")} == {"done"}
    read = read_sweep(tmp_path / "together")
    assert (read.damage, len(read.jobs)) == ([], len({job.output_dir.split("/")[-1] for job in jobs}))
    assert {len(job.rows) for job in read.jobs} == {3}
    assert results.tables[0].rows[0] == ["sweep status", "1", "1.0", "2.00"]
