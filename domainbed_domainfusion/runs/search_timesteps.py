"""`domainfusion search-timesteps`: the hparam `denoising_timesteps`, searched on training images.

After AutoDiffusion (Li et al., ICCV 2023), with the distance to candidates of many steps in place of FID, and with
held-out images for the numbers that are printed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..diffusion.source import resolve_source
from ..diffusion.timestep_evolution import Evolution, Timesteps, search_timesteps
from ..errors import InputError
from ..files import write_atomically
from ..generated.identity import model_identity
from ..hosting import checks, host
from ..hosting import hparams as table
from ..hosting.hparam_effects import of_a_candidate
from ..seeding import generator_of, seed_of
from .chosen_images import choose, open_folders, read
from .timestep_report import in_words, judged

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.reference_distance import ReferenceDistance

SCHEDULER = "dpmsolver++"
#: The least that each argument may be. With fewer images, none are held out; one list alone has no second parent.
LEAST = {"steps": 1, "reference_steps": 2, "images": 2, "generations": 1, "population": 4}


def search_from_folder(
    data: Path,
    steps: int,
    output: Path,
    given: dict[str, Any],
    reference_steps: int = 50,
    images: int = 32,
    generations: int = 8,
    population: int = 12,
    seed: int = 0,
) -> None:
    """Search a list of `steps` timesteps on images of data/environment/class/image; print it, write `output` (JSON).

    One half of the images is searched on. The list found is then compared on the other half with the uniform schedule,
    and with timesteps spaced evenly from the noise that strength names, which need no search.

    steps, reference_steps: of the whole schedule; strength runs its share of them. given: hparams that replace the
    defaults of DomainFusion's table; the scheduler is dpmsolver++. images: in all, spread over environments and
    classes. generations, population: see `search_timesteps`. seed: of the choice of images, of their noise (by the
    image's path in `data`) and of the search. Raises InputError for bad input, before anything is searched.
    """
    values = _hparams(given, steps)
    arguments = {"steps": steps, "reference_steps": reference_steps, "images": images}
    arguments |= {"generations": generations, "population": population}
    _check(arguments, output)
    folders = list(open_folders(data).values())
    values["class_names"] = checks.prompt_names_of_folders(values["class_names"], folders[0].classes)
    table.check_values(values)
    chosen = choose(data, folders, images, generator_of(seed, "search-timesteps"))
    halves = {"search": chosen[0::2], "held_out": chosen[1::2]}
    distances, starts, limit = _prepare(data, values, halves, reference_steps, seed)
    evolution = _search(distances["search"], starts, limit, generations, population, seed)
    index = {
        "hparams": {"denoising_timesteps": distances["search"].with_skipped(evolution.best), "scheduler": SCHEDULER},
        "uniform": judged(starts[0], evolution, distances["held_out"]),
        "even": judged(starts[1], evolution, distances["held_out"]),
        "found": judged(evolution.best, evolution, distances["held_out"]),
        "reference_timesteps": distances["search"].reference_timesteps,
        "arguments": {"data": str(data), **arguments, "seed": seed},
        "candidates": {**of_a_candidate(values), "class_names": values["class_names"]},
        "ldm": model_identity(values),
        "images": {half: [source for source, _ in samples] for half, samples in halves.items()},
        "history": evolution.history,
        "scores": [[list(timesteps), score] for timesteps, score in evolution.scores.items()],
    }
    write_atomically(output, json.dumps(index, indent=1))
    print(in_words(index))
    print(output)


def _hparams(given: dict[str, Any], steps: int) -> dict[str, Any]:
    """The hparams of the candidates. Raises InputError if they say what is searched, or a scheduler without lists."""
    for name, instead in (("denoising_timesteps", "it is what is searched"), ("denoising_steps", "give --steps")):
        if given.get(name) is not None:
            raise InputError(f"The hparam {name} has no place in a search of timesteps ({instead}): leave it out.")
    if given.get("scheduler", SCHEDULER) != SCHEDULER:
        raise InputError(
            f"Timesteps are searched for the scheduler {SCHEDULER}, not for {given['scheduler']}: ddim and pndm take "
            "steps of one size, and lcm draws noise in each step, so that more steps lead to another image: leave "
            "the hparam scheduler out."
        )
    defaults = host.hparams_registry.default_hparams("DomainFusion", "PACS")
    return {**defaults, **given, "scheduler": SCHEDULER, "denoising_steps": steps}


def _check(arguments: dict[str, int], output: Path) -> None:
    for name, value in arguments.items():
        if value < LEAST[name]:
            raise InputError(f"--{name} is {value}, but must be {LEAST[name]} or more.")
    if arguments["reference_steps"] <= arguments["steps"]:
        raise InputError(
            f"--reference_steps is {arguments['reference_steps']}, but must be more than --steps "
            f"({arguments['steps']}): the reference is what fewer steps are to come near to."
        )
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: give the name of a JSON file.")


def _prepare(
    data: Path, values: dict[str, Any], halves: dict[str, list[tuple[str, int]]], reference_steps: int, seed: int
) -> tuple[dict[str, "ReferenceDistance"], list[Timesteps], int]:
    """The score on each half of the images, the lists that the search starts from, and the limit of their timesteps.

    The first list is the uniform schedule of the hparams. The second is spaced evenly from the reference's first
    timestep on, where few steps of the first may begin at less noise. Then comes the other `timestep_spacing`.
    """
    from ..diffusion.candidates import CandidateSampler  # here, because diffusers takes seconds to import
    from ..diffusion.prompted import PromptedModel
    from ..diffusion.reference_distance import ReferenceDistance

    resolve_source(values["ldm"], values["ldm_revision"], values["ldm_decoder"], SCHEDULER)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PromptedModel.load(values, values["class_names"], device)
    if reference_steps > model.ldm.num_train_timesteps:
        raise InputError(
            f"--reference_steps is {reference_steps}, but the diffusion model has {model.ldm.num_train_timesteps} "
            "timesteps: use fewer."
        )
    spacings = dict.fromkeys([values["timestep_spacing"], "trailing", "leading"])
    samplers = [CandidateSampler.of(model, {**values, "timestep_spacing": spacing}) for spacing in spacings]
    distances = {}
    for half, samples in halves.items():
        images = read([data / source for source, _ in samples], values["image_size"])
        labels = torch.tensor([label for _, label in samples])
        seeds = [seed_of(seed, "search-timesteps", source) for source, _ in samples]
        distances[half] = ReferenceDistance(model, values, images, labels, seeds, reference_steps)
    run, end = samplers[0].evaluations, distances["search"].reference_timesteps[0] + 1
    even = tuple(end * (run - i) // run - 1 for i in range(run))
    uniform, *others = (sampler.executed for sampler in samplers)
    return distances, [uniform, even, *others], model.ldm.num_train_timesteps - (samplers[0].steps - run)


def _search(
    distance: "ReferenceDistance", starts: list[Timesteps], limit: int, generations: int, population: int, seed: int
) -> Evolution:
    """The search, with a bar of the lists that are scored."""
    with tqdm(total=generations * population, desc="searching", unit="list", disable=None) as progress:

        def score(timesteps: Timesteps) -> float:
            progress.update()
            return distance.distances(timesteps).mean().item()

        return search_timesteps(
            score, starts, limit, generations, population, seed_of(seed, "search-timesteps", "evolution")
        )
