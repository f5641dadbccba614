"""Run the host's train script and kill it at a chosen moment: `python -m tests.resuming.kill_at MOMENT ARGUMENTS`.

MOMENT is a name and the number of the occasion, from 1. The process kills itself with SIGKILL (or the signal after a
second colon), so the moment is exact:

    none              not at all
    start:1           when the algorithm has been built
    update:N          when the N-th update of this process has computed and is not yet recorded
    replay:N          in the N-th update that is replayed
    evaluation:N      in the N-th evaluation of one split
    row:N             after half of the N-th row has been written to results.jsonl
    checkpoint:N      in the N-th write of a checkpoint, between its two files
    round:N           before the N-th batch of images of a round
    save:N            in the N-th torch.save, with half of the file written
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable

MOMENTS = ("start", "update", "replay", "evaluation", "row", "checkpoint", "round", "save")


class Occasions:
    """Sends the signal at the occasion that was asked for."""

    def __init__(self, moment: str):
        self.name, number, name = (moment.split(":") + ["SIGKILL"])[:3]
        self.left, self.signal = int(number), getattr(signal, name)

    def come(self, name: str) -> bool:
        """Whether this is the occasion."""
        if name != self.name:
            return False
        self.left -= 1
        return self.left == 0

    def kill_if(self, name: str) -> None:
        if self.come(name):
            os.kill(os.getpid(), self.signal)


def instrument(occasions: Occasions) -> None:
    import torch

    from domainbed_domainfusion.generated.generation import Generation
    from domainbed_domainfusion.resuming import checkpoints, protected_run

    def before(owner: object, name: str, occasion: str) -> None:
        original: Callable = getattr(owner, name)

        def wrapped(*args, **kwargs):
            occasions.kill_if(occasion)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    run = protected_run.ProtectedRun
    take, accuracy = run.take, run.accuracy

    def taken(self, algorithm):
        take(self, algorithm)
        occasions.kill_if("start")

    def evaluated(self, compute, network, loader):
        def killed_in_it():
            value = compute()
            occasions.kill_if("evaluation")
            return value

        return accuracy(self, killed_in_it, network, loader)

    run.take, run.accuracy = taken, evaluated
    before(protected_run, "update_record", "update")
    before(protected_run.Replay, "update", "replay")
    before(Generation, "__call__", "round")

    write_atomically = checkpoints.write_atomically

    def written(path, content):
        if str(path).endswith(".json"):
            occasions.kill_if("checkpoint")
        write_atomically(path, content)

    checkpoints.write_atomically = written

    save, dumps = torch.save, json.dumps

    def torn_save(content, path):
        save(content, path)
        if occasions.come("save"):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), occasions.signal)

    def torn_dumps(value, **options):
        text = dumps(value, **options)
        if isinstance(value, dict) and "step" in value and "args" in value and occasions.come("row"):
            with open(os.path.join(value["args"]["output_dir"], "results.jsonl"), "a") as file:
                file.write(text[: len(text) // 2])
            os.kill(os.getpid(), occasions.signal)
        return text

    torch.save, json.dumps = torn_save, torn_dumps


def run(moment: str, script: str, arguments: list[str]) -> None:
    """Run one of the host's scripts as `python -m script arguments` does, and kill it at the moment."""
    sys.argv = [script, *arguments]
    if moment != "none":
        instrument(Occasions(moment))
    runpy.run_module(script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3:])
