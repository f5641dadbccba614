"""The long tests of resuming run with `make test-resume`, which sets KILL_TESTS."""

import os

import pytest

from . import jobs, tiny_folder

collect_ignore = [] if os.environ.get("KILL_TESTS") else ["test_killed_jobs.py"]


@pytest.fixture(scope="session")
def runner():
    return jobs.Runner()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder with TinyFolder, whose loaders have workers."""
    folder = tmp_path_factory.mktemp("data")
    tiny_folder.write(folder, workers=2 if "KILL_TESTS" in os.environ else 1)
    return folder


@pytest.fixture(scope="session")
def uninterrupted(runner, data, tmp_path_factory):
    """The folder of a job that ran without interruption and without resuming, by its algorithm and hparams."""
    folder, found = tmp_path_factory.mktemp("uninterrupted"), {}

    def job(algorithm: str, **hparams):
        key = repr((algorithm, hparams))
        if key not in found:
            found[key] = folder / str(len(found))
            status, printed = runner.run(found[key], data, algorithm, resume="off", **hparams)
            assert status == 0, printed
        return found[key]

    return job
