"""`benchmarks.resume`: what resuming takes for itself does not contain the work that it wraps."""

import pytest

from benchmarks import resume
from benchmarks.resume import Watch


def test_the_work_inside_is_not_counted_as_resumings_own(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resume.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        now[0] += seconds

    def resuming(compute):
        takes(1)
        result = compute()
        takes(2)
        return result

    watch = Watch(None)
    assert watch._timed(resuming, lambda: takes(40) or "result") == "result"
    assert (watch.own, watch.wrapped) == (3, 40)

    def stopped(compute):
        takes(5)
        raise SystemExit

    with pytest.raises(SystemExit):  # as after a stop signal
        watch._timed(stopped, None)
    assert (watch.own, watch.wrapped) == (8, 40)
