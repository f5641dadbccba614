"""A process that has imported the slow libraries once and forks a child for each job.

`python -m tests.resuming.preloaded` reads one JSON object per line (moment, script, arguments, environment, printed: a
file), and prints the child's process number and then its exit status, as `subprocess` gives it. The host and this
package are imported by the child.
"""

import json
import os
import sys

import diffusers  # noqa: F401
import sklearn.datasets  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
import transformers  # noqa: F401
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401 - they are loaded when they are named
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

from . import kill_at


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _become(job)
            return
        print(child, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def _become(job: dict) -> None:
    """Run the job in this process, which is a fork: its end is the end of the process."""
    os.setpgid(0, 0)
    output = os.open(job["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdin = open(0)
    os.environ.update(job["environment"])
    kill_at.run(job["moment"], job["script"], job["arguments"])


if __name__ == "__main__":
    main()
