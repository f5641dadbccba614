"""The hparams of a sweep's job, before it runs."""

import json
from typing import Any

from . import host


def hparams_of(args: dict[str, Any]) -> dict[str, Any]:
    """The hparams of a job, chosen by the rule of the host's train script.

    args: the job's arguments: algorithm, dataset, hparams_seed, trial_seed and, as JSON text, hparams.
    """
    registry, algorithm, dataset = host.hparams_registry, args["algorithm"], args["dataset"]
    if args["hparams_seed"] == 0:
        hparams = registry.default_hparams(algorithm, dataset)
    else:
        seed = host.lib.misc.seed_hash(args["hparams_seed"], args["trial_seed"])
        hparams = registry.random_hparams(algorithm, dataset, seed)
    return {**hparams, **json.loads(args.get("hparams") or "{}")}
