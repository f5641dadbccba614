"""What a run is, so that a checkpoint of another one is refused: arguments, hparams, data, versions, device."""

import hashlib
import json
from typing import Any

import torch

from .. import __version__
from ..hosting import context, host

#: Arguments that change neither a weight nor a minibatch; the folders may have been moved, and the hparams are there.
ARGUMENTS_LEFT_OUT = ("data_dir", "output_dir", "hparams", "skip_model_save", "save_model_every_checkpoint")


def fingerprint(algorithm: Any) -> dict[str, Any]:
    """Plain JSON values. The training images themselves are compared step by step, see `replay`."""
    arguments = {
        name: value for name, value in vars(context.train_arguments()).items() if name not in ARGUMENTS_LEFT_OUT
    }
    run = context.current()
    keys = [[split.environment, len(split.source), split.keys] for split in run.in_splits]  # type: ignore[arg-type]
    return _plain(
        {
            "arguments": arguments,
            "hparams": dict(algorithm.hparams),
            "data": {
                "splits": [len(split.keys) for split in run.in_splits],
                "evaluated": run.evaluation_lengths,
                "keys": hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16],
            },
            "device": {
                "kind": "cuda" if torch.cuda.is_available() else "cpu",
                "number": torch.cuda.device_count(),
            },
            "versions": {"host": host.NAME, "domainbed-domainfusion": __version__, "torch": torch.__version__},
        }
    )


def difference(saved: dict[str, Any], present: dict[str, Any]) -> str | None:
    """The first difference, as "hparams lr: 0.001 there, 0.0005 here"; None if there is none."""
    for group in sorted(set(saved) | set(present)):
        there, here = saved.get(group) or {}, present.get(group) or {}
        for name in sorted(set(there) | set(here)):
            if there.get(name) != here.get(name):
                return f"{group} {name}: {json.dumps(there.get(name))} there, {json.dumps(here.get(name))} here"
    return None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda each: each.item()))  # the host's draws may be numpy's
