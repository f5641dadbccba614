"""What checkpoints cost a run, and what it costs to take it up: `python -m benchmarks.resume --output FILE.json`.

One job trains to its half, gets SIGTERM, is started again and ends. In both processes the time that resuming takes for
itself is measured beside the time of the training that it wraps, so other load on the machine affects both.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_domainfusion.errors import exit_status
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.resuming import switch
from domainbed_domainfusion.sweeping.quickstart import QUICKSTART_HPARAMS

from .arguments import arguments
from .results import Results, Table, keep_and_print

ALGORITHMS = ("ERM", "DomainFusion")


class Watch:
    """Measures in a training process: what it spends in resuming itself, and what in the work that resuming wraps."""

    def __init__(self, stop_after: int | None):
        self.stop_after = stop_after
        self.began: float | None = None  # when the algorithm had been built
        self.own = self.wrapped = 0.0  # seconds
        self.taken_up: float | None = None  # seconds from `began` until the run was where it had been
        self.updates = 0

    def attach(self) -> None:
        """Wrap the two calls through which all of a run passes."""
        from domainbed_domainfusion.resuming.protected_run import ProtectedRun

        update, accuracy, take = ProtectedRun.update, ProtectedRun.accuracy, ProtectedRun.take

        def measured_take(run: Any, algorithm: Any) -> None:
            self.began = time.perf_counter()
            self._timed(lambda _: take(run, algorithm), None)

        def measured_update(run: Any, compute: Callable, *rest: Any) -> Any:
            replaying = run._replay is not None
            result = self._timed(lambda inner: update(run, inner, *rest), compute)
            if replaying and run._replay is None:
                assert self.began is not None
                self.taken_up = time.perf_counter() - self.began
                self.own = self.wrapped = 0.0
            self.updates += 1
            if self.updates == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        def measured_accuracy(run: Any, compute: Callable, *rest: Any) -> Any:
            return self._timed(lambda inner: accuracy(run, inner, *rest), compute)

        wrappers = {"take": measured_take, "update": measured_update, "accuracy": measured_accuracy}
        for name, wrapper in wrappers.items():
            setattr(ProtectedRun, name, wrapper)

    def _timed(self, call: Callable, compute: Callable | None) -> Any:
        """call: of resuming, with the work that it wraps as its argument."""
        inside = 0.0

        def inner() -> Any:
            nonlocal inside
            assert compute is not None
            start = time.perf_counter()
            try:
                return compute()
            finally:
                inside += time.perf_counter() - start

        start = time.perf_counter()
        try:
            return call(inner)
        finally:
            self.wrapped += inside
            self.own += time.perf_counter() - start - inside

    def seconds(self) -> dict[str, float | None]:
        assert self.began is not None
        return {
            "resuming": self.own,
            "training and evaluation": self.wrapped,
            "from the first step on": time.perf_counter() - self.began,
            "taken up after": self.taken_up,
        }


def measure_job(arguments: list[str], stop_after: int | None) -> None:
    """In a process of its own: run the host's train script and write the seconds to stdout's last line."""
    watch = Watch(stop_after)
    watch.attach()
    sys.argv = ["train", *arguments]
    printed = os.dup(1)
    try:
        with contextlib.suppress(SystemExit):
            runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__", alter_sys=True)
    finally:
        os.write(printed, f"\n{json.dumps(watch.seconds())}\n".encode())


def job_seconds(arguments: list[str], stop_after: int | None) -> dict[str, Any]:
    code = f"from benchmarks.resume import measure_job; measure_job({arguments!r}, {stop_after!r})"
    environment = {**os.environ, switch.VARIABLE: os.environ.get(switch.VARIABLE) or "on"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(algorithms: list[str], steps: int, data_dir: Path) -> Results:
    results = Results("resume", "DigitStyles", {"steps": steps, switch.VARIABLE: os.environ.get(switch.VARIABLE, "on")})
    columns = ["first half (s)", "checkpoints and journal (% of training)", "taken up in (s)", "% of the first half"]
    table = Table(["algorithm", *columns])
    for algorithm in algorithms:
        with tempfile.TemporaryDirectory() as output:
            arguments = ["--data_dir", str(data_dir), "--dataset", "DigitStyles", "--algorithm", algorithm]
            arguments += ["--steps", str(steps), "--output_dir", output, "--hparams", json.dumps(QUICKSTART_HPARAMS)]
            first = job_seconds(arguments, steps // 2)
            second = job_seconds(arguments, None)
            assert (Path(output) / "done").exists() and second["taken up after"] is not None
        trained = first["training and evaluation"] + second["training and evaluation"]
        own, half = first["resuming"] + second["resuming"], first["from the first step on"]
        row = [half, 100 * own / trained, second["taken up after"], 100 * second["taken up after"] / half]
        table.rows.append([algorithm, *(f"{value:.2f}" for value in row)])
        for name in ("resuming", "training and evaluation"):
            results.seconds[f"{algorithm}, {name}"] = [first[name], second[name]]
    results.tables.append(table)
    return results


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    results = run(given.algorithms, given.steps, given.data_dir)
    return keep_and_print(results, given.output, "resume")


if __name__ == "__main__":
    sys.exit(exit_status(main))
