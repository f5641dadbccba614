"""`python -m benchmarks --suite ld|candidates|step|levers|sweep --device cpu|cuda --model tiny|pocket|sd1`: R1 to R8.

Prints tables, then each ratio once on a line of its own; `--output FILE.json` keeps both (the table as FILE.md).
"""

import argparse
import importlib
import sys
import warnings

import torch

from domainbed_domainfusion.errors import InputError, exit_status

from . import models
from .arguments import json_file
from .machine import describe

REPEATS = {"ld": 5, "candidates": 3, "step": 3, "levers": 3, "sweep": 2}


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no GPU here: run the benchmark with --device cpu.")
    if arguments.repeats is not None and arguments.repeats < 1:
        raise InputError("--repeats must be at least 1.")
    if arguments.compile and arguments.suite != "candidates":
        raise InputError("--compile compiles generation: use it with --suite candidates.")
    dtype = arguments.dtype or ("float16" if arguments.device == "cuda" else "float32")
    warnings.filterwarnings("ignore", message="(?s).*(clip_sample|steps_offset|torch_dtype)", category=FutureWarning)
    suite = importlib.import_module(f".{arguments.suite}", __package__)
    with models.opened(arguments.model) as model:
        options = {"compiled": arguments.compile} if arguments.compile else {}
        results = suite.run(model, arguments.device, dtype, arguments.repeats or REPEATS[arguments.suite], **options)
    machine = describe(arguments.device, _without_output(sys.argv[1:] if argv is None else argv))
    print(results.markdown(machine))
    if arguments.output:
        results.write(arguments.output, machine)
    return 0


def _without_output(argv: list[str]) -> list[str]:
    """The command line without --output. The results record it, and their place is no part of the measurement."""
    rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    rest.add_argument("--output")
    return rest.parse_known_args(argv)[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=REPEATS, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=models.MODELS, default="pocket")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on a CPU, float16 on a GPU"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        help="rounds that are counted; default " + ", ".join(f"{suite} {count}" for suite, count in REPEATS.items()),
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="kernels",
        choices=["kernels", "cuda_graphs"],
        help="with --suite candidates: ours with torch.compile, on a GPU also as CUDA graphs",
    )
    parser.add_argument("--output", type=json_file, help="a .json file; the table goes to the .md beside it")
    return parser


if __name__ == "__main__":
    sys.exit(exit_status(main))
