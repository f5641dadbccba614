"""One training job with checkpoints: what happens at each call that the host makes of its algorithm.

A checkpoint is the state after an update. A run that continues replays all updates up to it and all evaluations before
its last update, restores the state, and computes from there: the last update's own evaluation is made again.
"""

import base64
import itertools
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..hosting import context
from . import checkpoints, generators, journal, values
from .capture import Capture
from .checkpoints import Checkpoint
from .fingerprint import difference, fingerprint
from .job_lock import JobLock
from .model_files import ModelFiles
from .own_state import CONTINUED, RESUME_FOLDER, OwnState, ReadsInUpdate
from .recorded_rows import RecordedRows
from .replay import Replay, accuracy_record, update_record
from .restore import restore
from .stop_signals import StopSignals

SECONDS_BEFORE_THE_END = 60  # a checkpoint that is not older serves for the last evaluation, too
COPIES_OF_WEIGHTS = 4  # in a checkpoint: the weights, their gradients and the two moments of Adam


class ProtectedRun:
    """The job in `job_folder`, with a checkpoint every `minutes` minutes and when a stop signal comes.

    Raises InputError if another process trains the job or the folder cannot be written.
    """

    def __init__(self, job_folder: Path, minutes: float):
        self.job_folder, self.folder, self.minutes = job_folder, job_folder / RESUME_FOLDER, minutes
        self._algorithm: Any = None
        self.lock = JobLock(self.folder)
        self.updates = 0  # that have been made or replayed
        self._replay: Replay | None = None
        self._target: Checkpoint | None = None  # what the replay leads to
        self._evaluated: int | None = None  # the step of the last evaluation that was not replayed
        self._stop: int | None = None  # the stop signal that has come
        self._busy = False  # in an update, or between its end and its record
        self._warned = False
        self._saved_at = self._returned_at = time.monotonic()
        self._step_seconds: list[float] | None = None  # since the last row, if some of these steps were replayed

    def take(self, algorithm: Any) -> None:
        """The host has built its algorithm: find the checkpoint to continue from, or begin."""
        self._algorithm = algorithm
        self._total = context.current().total_steps
        self._run = fingerprint(algorithm)
        size = sum(each.numel() * each.element_size() for each in algorithm.state_dict().values())
        checkpoints.check_space(self.folder, COPIES_OF_WEIGHTS * size)
        self._target, records = self._find()
        begun = (self.folder / "journal").exists()
        length = 0
        if self._target is not None:
            length = self._target.content["journal"]["length"]
            self._replay = Replay(str(self.folder), records)
        elif begun:
            print(f"The job in {self.job_folder} was begun and has no whole checkpoint: it begins anew.")
        else:
            self._set_aside_rows()
        updates = self._target.updates if self._target else 0
        self._rows = RecordedRows(self.job_folder / "results.jsonl", updates)
        self._models = ModelFiles(self.job_folder, self.folder / "models", updates)
        self._journal: journal.Journal | None = journal.Journal(self.folder / "journal", length)
        self._mark_update()
        self._expensive = self._expensive_results()
        StopSignals(self.stop)

    def update(self, compute: Callable[[], dict], minibatches: Any, unlabeled: Any) -> dict:
        """One step. compute: the algorithm's own update of these minibatches."""
        self._busy = True
        self._amend_row()
        if self._replay is not None:
            result = self._replayed_update(self._replay, compute, minibatches, unlabeled)
        else:
            before = generators.state()
            result = compute()
            seconds = time.monotonic() - self._returned_at
            self.updates += 1
            self._append(update_record(self.updates - 1, result, before, minibatches, unlabeled, seconds))
            if self._step_seconds is not None:
                self._step_seconds.append(seconds)
            self._mark_update()
            if self._checkpoint_is_due():
                self._write_checkpoint()
        self._busy = False
        if self._stop is not None:
            self._end(self._stop)
        self._returned_at = time.monotonic()
        return result

    def accuracy(self, compute: Callable[[], float], network: Any, loader: Iterable) -> float:
        """One evaluation of the algorithm on one split. compute: the host's own."""
        if self._replay is not None:
            self._drop_replayed(self._replay)
            return self._replay.accuracy(network, loader)
        before = generators.state()
        result = compute()
        self._append(accuracy_record(result, before))
        self._evaluated = self.updates - 1
        self._returned_at = time.monotonic()
        return result

    def stop(self, signal_number: int) -> None:
        """A stop signal has come: end after the step that is being made, or at once if none is."""
        self._stop = signal_number
        if not self._busy:
            self._end(signal_number)

    def ended(self) -> None:
        """The process ends: nothing more is needed of a job that is done."""
        if (self.job_folder / "done").exists():
            self._amend_row()
            if isinstance(self._algorithm, OwnState):
                self._algorithm.training_ended()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _find(self) -> tuple[Checkpoint | None, list[dict]]:
        """The newest whole checkpoint with its journal. Raises InputError if it is another run's."""
        for checkpoint in checkpoints.newest_first(self.folder):
            saved = checkpoint.content["journal"]
            other = difference(checkpoint.content["run"], self._run)
            if other is not None:
                raise InputError(
                    f"The checkpoints in {self.folder} are another run's ({other}): start that run again, choose "
                    "another output folder, or delete that folder to train from the beginning."
                )
            try:
                return checkpoint, journal.read(self.folder / "journal", saved["length"], saved["sha256"])
            except ValueError as damage:
                checkpoints.report_damage(self.folder, checkpoint.updates, str(damage))
        return None, []

    def _set_aside_rows(self) -> None:
        """Rows of a run without checkpoints, which the host would mix with the new ones."""
        rows = self.job_folder / "results.jsonl"
        if rows.is_file():
            names = (self.job_folder / f"results-set-aside-{number}.jsonl" for number in itertools.count(1))
            aside = next(path for path in names if not path.exists())
            rows.rename(aside)
            print(f"{rows} holds the rows of a run without checkpoints: they lie in {aside.name} now.")

    def _replayed_update(self, replay: Replay, compute: Callable, minibatches: Any, unlabeled: Any) -> dict:
        self._drop_replayed(replay)
        result = replay.update(minibatches, unlabeled)
        if isinstance(self._algorithm, ReadsInUpdate):
            self._algorithm.read_as_in_update()
        self.updates += 1
        if self._target is not None and self.updates == self._target.updates:
            self._restore(self._target, replay, compute)
            self._models.put_back(all_of_them=True)
            self._step_seconds = replay.seconds
            self._replay = self._target = None
            self._mark_update()
            self._saved_at, self._expensive = time.monotonic(), self._expensive_results()
            print(f"{CONTINUED} {self.updates - 1} from the checkpoint in {self.folder}.")
        return result

    def _drop_replayed(self, replay: Replay) -> None:
        self._models.put_back(all_of_them=False)
        different = self._rows.drop_replayed()
        if different is not None:
            raise replay.refusal(f"its row in results.jsonl comes out another ({different})")

    def _restore(self, checkpoint: Checkpoint, replay: Replay, compute: Callable[[], dict]) -> None:
        content = checkpoint.content
        missing = restore(self._algorithm, content["tree"], checkpoint.tensors, compute)
        if missing:
            raise replay.refusal(f"the algorithm's {missing[0]} cannot be made again")
        if isinstance(self._algorithm, OwnState):
            self._algorithm.load_resume_state(values.decode(content["own"], checkpoint.tensors.__getitem__))
        generators.set_state(zlib.decompress(base64.b64decode(content["generators"])))

    def _amend_row(self) -> None:
        """The host's step_time of the first row after a replay counts the replayed steps: put in the recorded ones."""
        if self._step_seconds and self._evaluated is not None:
            self._rows.amend(self._evaluated, sum(self._step_seconds) / len(self._step_seconds))
            self._step_seconds = None

    def _mark_update(self) -> None:
        """Remember what a checkpoint of the state after this update needs, which later evaluations change."""
        if self._journal is not None:
            self._marked = {"length": self._journal.length, "sha256": self._journal.digest()}
            self._generators = generators.state()

    def _append(self, record: dict) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append(record)
        except OSError as error:
            self._journal = None
            print(
                f"Cannot write in {self.folder} ({error.strerror or error}): training goes on without checkpoints; the "
                "last one stays."
            )

    def _expensive_results(self) -> int:
        return self._algorithm.expensive_results() if isinstance(self._algorithm, OwnState) else 0

    def _checkpoint_is_due(self) -> bool:
        """After the set time, after a round, and before the last update, whose evaluation may be long."""
        age = time.monotonic() - self._saved_at
        return (
            age >= 60 * self.minutes
            or self._expensive_results() != self._expensive
            or (self.updates == self._total - 1 and age >= SECONDS_BEFORE_THE_END)
        )

    def _write_checkpoint(self) -> None:
        """Not after the last update: a continued run always makes one itself, which makes what an algorithm makes in
        its updates. If the disk is full, one sentence is printed and training goes on."""
        if self._journal is None or not 0 < self.updates < self._total:
            return
        self._saved_at, self._expensive = time.monotonic(), self._expensive_results()
        try:
            capture = Capture(self._algorithm)
            own = self._algorithm.resume_state() if isinstance(self._algorithm, OwnState) else {}
            content = {
                "run": self._run,
                "journal": self._marked,
                "generators": base64.b64encode(zlib.compress(self._generators)).decode(),
                "own": values.encode(own, capture.store),
                "tree": capture.tree,
            }
            self._journal.sync()
            checkpoints.write(self.folder, Checkpoint(self.updates, content, capture.tensors))
        except (InputError, OSError) as error:
            if not self._warned:
                print(f"{error} Training goes on; a checkpoint is tried again every {self.minutes:g} minutes.")
            self._warned = True

    def _end(self, signal_number: int) -> None:
        """End the process with the status that a shell gives to a process that a signal has ended."""
        self._busy = True
        if self._replay is None:
            self._write_checkpoint()
        raise SystemExit(128 + signal_number)
