"""Where resuming attaches to the host: the class of the algorithm that train builds, and its `accuracy`."""

import atexit
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hosting import context, host
from ..hosting.weight_average import class_for
from . import switch
from .protected_run import ProtectedRun
from .stop_signals import end_workers, spare_workers


def protect_training() -> None:
    """In the host's train script, if DOMAINFUSION_RESUME asks for it: give the job checkpoints, or continue it.

    A job that is done ends here, with status 0. Raises InputError if another process trains the job, or if its folder
    cannot be written.
    """
    minutes = switch.minutes()
    if minutes is None or context.running_script() != "train" or {"-h", "--help"} & set(sys.argv):
        return
    job_folder = Path(context.train_arguments().output_dir)
    if (job_folder / "done").exists():
        print(f"The job in {job_folder} is done: nothing is left to train.")
        raise SystemExit(0)
    run = ProtectedRun(job_folder, minutes)
    atexit.register(run.ended)
    atexit.register(end_workers)  # runs first, and before multiprocessing's own
    loaders = host.module("lib.fast_data_loader")
    spare_workers(loaders.InfiniteDataLoader)
    spare_workers(loaders.FastDataLoader)
    _protect_algorithms(host.algorithms, run)
    _record_evaluations(host.module("lib.misc"), run)


def _protect_algorithms(algorithms: Any, run: ProtectedRun) -> None:
    original = algorithms.get_algorithm_class

    @functools.wraps(original)
    def get_algorithm_class(algorithm_name: str) -> Callable[..., Any]:
        algorithm_class = original(algorithm_name)

        @functools.wraps(algorithm_class, updated=())
        def construct(*args: Any, **kwargs: Any) -> Any:
            # An average of the weights belongs to the step: it lies inside, and a replayed step does not touch it.
            return protected(class_for(algorithm_class, *args, **kwargs), run)(*args, **kwargs)

        return construct

    algorithms.get_algorithm_class = get_algorithm_class


def protected(algorithm_class: Any, run: ProtectedRun) -> type:
    """A subclass whose instances train in `run`, under the same name."""

    @functools.wraps(algorithm_class, updated=())
    class Protected(algorithm_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            run.take(self)

        def update(self, minibatches, unlabeled=None):
            return run.update(lambda: super(Protected, self).update(minibatches, unlabeled), minibatches, unlabeled)

    return Protected


def _record_evaluations(misc: Any, run: ProtectedRun) -> None:
    original = misc.accuracy

    @functools.wraps(original)
    def accuracy(network, loader, weights, device):
        return run.accuracy(lambda: original(network, loader, weights, device), network, loader)

    misc.accuracy = accuracy
