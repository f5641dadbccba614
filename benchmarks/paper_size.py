"""How long the tools take on a sweep folder of the paper's size: `python -m benchmarks.paper_size --output FILE.json`.

All jobs of the sweep files are written with made-up results, as if they were done: real arguments and folder names,
a row for every checkpoint, random accuracies. Then each tool runs once in a process of its own. Nothing is trained.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from domainbed_domainfusion.errors import exit_status
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.seeding import seed_of
from domainbed_domainfusion.sweeping import sweep_files
from domainbed_domainfusion.sweeping.host_scripts import script_environment

from .arguments import arguments
from .results import Results, Table, keep_and_print

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
#: Runs a command and prints its peak memory in KB. A child of this process itself would count this process's memory.
MEASURING = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
CHECKPOINTS = 34  # rows of a job: 10,020 steps, a checkpoint every 300
OF_DOMAINFUSION = (
    "generated_images",
    "generation_seconds",
    "ld_seconds",
    "generated_loss",
    "ld_loss",
    "ld_gradient_ratio",
)


def main() -> int:
    parser = arguments(__doc__, data=None)
    parser.add_argument(
        "files", nargs="*", type=Path, default=sorted(SWEEPS.glob("*.txt")), help="default: sweeps/*.txt"
    )
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS, help="rows of each job (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), given.files, given.checkpoints)
    return keep_and_print(results, given.output, "paper_size")


def run(folder: Path, files: list[Path], checkpoints: int) -> Results:
    """Write the jobs of the sweep files below `folder`, then time each tool on them."""
    runs, together = folder / "runs", folder / "together"
    launch = ["--data_dir", "data", "--output_dir", str(runs), "--command_launcher", "local", "--skip_confirmation"]
    jobs = {
        job.output_dir: job for path in files for sweep in sweep_files.read(path).sweeps for job in sweep.jobs(launch)
    }
    together.mkdir()
    for job in tqdm(jobs.values(), desc="writing", unit="job"):
        _write(job, checkpoints)
        link = together / Path(job.output_dir).name
        if not link.exists():
            link.symlink_to(job.output_dir)
    ours, hosts = [sys.executable, "-m", "domainbed_domainfusion.cli"], [sys.executable, "-m"]
    tools = {
        "sweep status": [[*ours, "sweep", "status", str(together)]],
        "collect_results": [[*hosts, f"{host.NAME}.scripts.collect_results", "--input_dir", str(together)]],
        "report": [[*ours, "report", "--input_dir", str(together), "--output", str(folder / "report.html")]],
        "sweep launch, nothing to do": [[*ours, "sweep", "launch", str(path), *launch] for path in files],
    }
    number = len(list(together.iterdir()))
    results = Results("paper_size", "made-up results", {"jobs": number, "rows of each": checkpoints})
    table = Table(["tool", "commands", "seconds", "peak memory (GB)"])
    for name, commands in tools.items():
        measured = [_measured(command) for command in commands]
        seconds, peak = sum(each[0] for each in measured), max(each[1] for each in measured)
        table.rows.append([name, str(len(commands)), f"{seconds:.1f}", f"{peak / 1e9:.2f}"])
        print(f"{name}: {seconds:.1f} s, {peak / 1e9:.2f} GB", file=sys.stderr, flush=True)
        results.seconds[name] = [each[0] for each in measured]
    results.tables.append(table)
    return results


def _write(job, checkpoints: int) -> None:
    """A finished job with made-up rows."""
    folder = Path(job.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text(
        "".join(f"{json.dumps(row, sort_keys=True)}\n" for row in _rows(job, checkpoints))
    )
    (folder / "out.txt").write_text("")
    (folder / "err.txt").write_text("")
    (folder / "done").write_text("done")


def _rows(job, checkpoints: int) -> Iterator[dict]:
    arguments = {name: value for name, value in job.train_args.items() if name != "hparams"}
    given = job.train_args.get("hparams")
    rng = np.random.RandomState(seed_of("paper_size", Path(job.output_dir).name) % 2**32)
    hparams = host.hparams_registry.default_hparams(arguments["algorithm"], arguments["dataset"])
    hparams |= json.loads(given) if given else {}
    environments = len(host.datasets.get_dataset_class(arguments["dataset"]).ENVIRONMENTS)
    names = [f"env{env}_{split}_acc" for env in range(environments) for split in ("in", "out")]
    names += ["loss", "step_time", "mem_gb", *(OF_DOMAINFUSION if arguments["algorithm"] == "DomainFusion" else ())]
    for checkpoint in range(checkpoints):
        yield {
            **dict(zip(names, rng.uniform(size=len(names)).tolist())),
            "step": 300 * checkpoint,
            "epoch": 3.6 * checkpoint,
            "args": {"trial_seed": 0, "hparams_seed": 0, **arguments, "hparams": given},
            "hparams": hparams,
        }


def _measured(command: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes) of a command. Raises CalledProcessError if it fails."""
    begun = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", MEASURING, *command],
        env=script_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - begun, 1024 * int(ended.stdout)


if __name__ == "__main__":
    sys.exit(exit_status(main))
