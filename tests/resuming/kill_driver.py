"""Kill jobs twice at moments that chance decides, and compare: `python -m tests.resuming.kill_driver --runs 30`.

It prints a line for each run: the two moments, and whether the job ended as the uninterrupted one. With DOMAINBED_DIR
it runs in a copy of that checkout. Exit status 1 if a run differs.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import real_host

#: name → how many occasions a whole run of TinyFolder has
OCCASIONS = {"start": 1, "update": 12, "evaluation": 30, "row": 5, "checkpoint": 11, "save": 6}
DOMAINFUSION = {"round": 12}
AGAIN = {"replay": 8}  # a second run has these too
NEVER = "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--algorithms", nargs="+", default=["ERM", "SAM", "DomainFusion"])
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        real_host.use_checkout(base)
        from . import jobs, tiny_folder  # which host runs us is decided here

        tiny_folder.write(base / "data")
        runner = jobs.Runner()
        unequal = 0
        for number in range(arguments.runs):
            algorithm = arguments.algorithms[number % len(arguments.algorithms)]
            hparams = {"save_generated": chance.choice(["none", "last", "all"])} if algorithm == "DomainFusion" else {}
            whole = base / "-".join(["whole", algorithm, *hparams.values()])
            if not whole.exists():
                runner.run(whole, base / "data", algorithm, resume="off", **hparams)
            job = base / "job"
            killed_at: list[str] = []
            while True:
                moment = _moment(chance, algorithm, AGAIN if killed_at else {}) if len(killed_at) < 2 else NEVER
                status, printed = runner.run(job, base / "data", algorithm, moment, **hparams)
                if status == -signal.SIGKILL and moment != NEVER:
                    killed_at.append(moment)
                elif status == 0 and moment != NEVER:  # it ended before the moment came: from the beginning
                    shutil.rmtree(job)
                    killed_at.clear()
                else:  # it was killed twice, or something is wrong
                    break
            found = jobs.differences(whole, job) if status == 0 else [printed[-2000:]]
            unequal += bool(found)
            outcome = f"NOT EQUAL: {', '.join(found)}" if found else "equal"
            print(f"{number + 1:3} {algorithm:12} killed at {' and '.join(killed_at):32} {outcome}", flush=True)
            shutil.rmtree(job)
    print(f"{arguments.runs - unequal} of {arguments.runs} runs equal")
    return 1 if unequal else 0


def _moment(chance: random.Random, algorithm: str, others: dict[str, int]) -> str:
    occasions = {**OCCASIONS, **(DOMAINFUSION if algorithm == "DomainFusion" else {}), **others}
    name = chance.choice(sorted(occasions))
    return f"{name}:{chance.randint(1, occasions[name])}"


if __name__ == "__main__":
    sys.exit(main())
