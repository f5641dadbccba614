"""The verb `domainfusion search-timesteps`."""

import argparse
from pathlib import Path

from .our_names import add_our_names_to_the_host


def add_to(verbs: argparse._SubParsersAction) -> None:
    """Add `search-timesteps` to the verbs of `domainfusion`."""
    search = verbs.add_parser(
        "search-timesteps",
        help="the hparam denoising_timesteps for your images: the few steps whose candidates come nearest to those of "
        "many steps, searched on training images",
    )
    search.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a folder environment/class/image of TRAINING images; the test environment's folder has no place in it",
    )
    search.add_argument("--steps", type=int, required=True, help="timesteps in the list, as the hparam denoising_steps")
    search.add_argument("--output", type=Path, required=True, help="a JSON file: the list, and all that was scored")
    search.add_argument("--ldm", help="the hparam ldm")
    search.add_argument("--hparams", help="a JSON object of DomainFusion's hparams, those of the runs to come")
    search.add_argument("--reference_steps", type=int, default=50, help="of the reference; default: %(default)s")
    search.add_argument(
        "--images",
        type=int,
        default=32,
        help="in all, half of them held out for the last numbers; default: %(default)s",
    )
    search.add_argument("--generations", type=int, default=8, help="of the search; default: %(default)s")
    search.add_argument("--population", type=int, default=12, help="new lists in each; default: %(default)s")
    search.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    search.set_defaults(run=_search_timesteps)


def _search_timesteps(arguments: argparse.Namespace) -> None:
    from ..hosting.checks import check_hparams_text
    from ..runs.search_timesteps import search_from_folder

    add_our_names_to_the_host()
    given = check_hparams_text(arguments.hparams or "{}")
    if arguments.ldm:
        given["ldm"] = arguments.ldm
    search_from_folder(
        arguments.data,
        arguments.steps,
        arguments.output,
        given,
        arguments.reference_steps,
        arguments.images,
        arguments.generations,
        arguments.population,
        arguments.seed,
    )
