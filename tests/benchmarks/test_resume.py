"""`benchmarks.resume`: what resuming takes for itself does not contain the work that it wraps."""

import time

import pytest

from benchmarks.resume import Watch


def test_the_work_inside_is_not_counted_as_resumings_own():
    watch = Watch(None)

    def resuming(compute):
        time.sleep(0.05)
        result = compute()
        time.sleep(0.05)
        return result

    def compute():
        time.sleep(0.2)
        return "result"

    assert watch._timed(resuming, compute) == "result"
    assert watch.wrapped == pytest.approx(0.2, abs=0.04) and watch.own == pytest.approx(0.1, abs=0.04)
    with pytest.raises(SystemExit):  # as after a stop signal
        watch._timed(lambda _: (_ for _ in ()).throw(SystemExit), None)
    watch._timed(lambda _: time.sleep(0.1), None)
    assert watch.wrapped == pytest.approx(0.2, abs=0.04) and watch.own == pytest.approx(0.2, abs=0.06)
