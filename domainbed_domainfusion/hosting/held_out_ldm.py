"""The hparam `ldm` for each test environment: in its value `{test_envs}` stands for the run's test environments.

A diffusion model that has seen images of the test domain would leak it. With "ldms/without-{test_envs}" one sweep gives
each run the model that was trained without its test environments.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from . import context, host

PLACE = "{test_envs}"


def with_ldm_of_run(hparams: dict[str, Any], dataset: str, test_envs: Sequence[int]) -> dict[str, Any]:
    """A copy whose `ldm` names the diffusion model of this run.

    `{test_envs}` becomes the names of the environments `test_envs` as the host's tables show them, in their order and
    joined by "+": `A`, or `A+S`. Raises InputError if it stands there and the host does not know the dataset or an
    environment.
    """
    source = hparams.get("ldm")
    if not isinstance(source, str) or PLACE not in source:
        return dict(hparams)
    names = getattr(getattr(host.datasets, dataset, None), "ENVIRONMENTS", None) or ()
    if not test_envs or max(test_envs) >= len(names):
        raise InputError(
            f"The hparam ldm is {source!r}, but {dataset} has no name for the test environments {list(test_envs)}: "
            "name the diffusion model itself."
        )
    return {**hparams, "ldm": source.replace(PLACE, "+".join(names[i] for i in sorted(test_envs)))}


def with_ldm_of_this_process(hparams: dict[str, Any]) -> dict[str, Any]:
    """The same in the host's train script, whose arguments name the dataset and the test environments."""
    arguments = context.train_arguments()
    return with_ldm_of_run(hparams, arguments.dataset, arguments.test_envs)
