"""`python -m MODULE ARGUMENTS` in forks of one process that has imported the slow libraries.

A new process spends seconds on importing them. A fork has them, and imports the host and this package itself. In all
else it is a process of its own: its environment, folder, output, exit status and death by a signal.

`python -m tests.forks` is the process that forks. It reads one JSON object per line (module, arguments, environment,
folder, stdout, stderr), and prints the child's process number and then its exit status, as `subprocess` gives it.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[1]


class Forks:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        # Used up with this object, or with the interpreter.
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        self._always = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path])),
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.forks"]
        environment = {**os.environ, **self._always}
        self._process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._command: list[str] = []

    def start(
        self, module: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({}), folder: Path = ROOT
    ) -> int:
        """Start a command; its process number. The command before it has been waited for.

        environment: beside what this process has. folder: where it runs; Python finds modules there first.
        """
        self._command = [sys.executable, "-m", module, *arguments]
        request = {
            "module": module,
            "arguments": arguments,
            "environment": {**os.environ, **self._always, **environment},
            "folder": str(folder),
            "stdout": self._output("stdout"),
            "stderr": self._output("stderr"),
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> subprocess.CompletedProcess[str]:
        """The end of the command that was started last."""
        assert self._process.stdout
        status = int(self._process.stdout.readline())
        printed = [Path(self._output(name)).read_text(errors="replace") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self._command, status, *printed)

    def _output(self, name: str) -> str:
        return os.path.join(self._folder.name, name)


@functools.cache
def shared() -> Forks:
    """The forks of all tests of this process, made at the first call. They end with the process."""
    return Forks()


def run(module: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """`Forks.start` and `wait` in the shared forks."""
    forks = shared()
    forks.start(module, *arguments, **options)
    return forks.wait()


def _serve() -> None:
    # What a child needs of them is loaded when it is named, so it is named here.
    import diffusers  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # so that a child's collector does not touch, and so copy, every object of this process
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _become(request)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(request: dict) -> None:
    """Run the command in this process, which is a fork: its end is the end of the process."""
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for name, target in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), target)
    sys.stdin = open(0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv = [request["module"], *request["arguments"]]
    status = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = _status(end)
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    # All that the interpreter does at its end but to take its objects apart, which takes 3 seconds with so many.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        stream.flush()
    os._exit(status)


def _status(end: SystemExit) -> int:
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
        return 1
    return int(end.code or 0)


if __name__ == "__main__":
    _serve()
