"""What `domainfusion search-timesteps` says of a list: its score in the search, and on the images held out of it."""

import json
from typing import TYPE_CHECKING, Any

from ..diffusion.timestep_evolution import Evolution, Timesteps

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.reference_distance import ReferenceDistance


def judged(timesteps: Timesteps, evolution: Evolution, held_out: "ReferenceDistance") -> dict[str, Any]:
    """A list's score in the search, and its distances on the held-out images."""
    distances, psnr = held_out.distances(timesteps), held_out.psnr(timesteps)
    return {
        "timesteps": timesteps,
        "search_error": evolution.scores[timesteps],
        "held_out_error": distances.mean().item(),
        "held_out_psnr": psnr.mean().item(),
        "held_out_errors": distances.tolist(),
    }


def in_words(index: dict[str, Any]) -> str:
    """What is printed: the lists on the held-out images, and the hparam to copy if it is worth it."""
    uniform, found, arguments = index["uniform"], index["found"], index["arguments"]
    held_out, run = len(index["images"]["held_out"]), len(found["timesteps"])
    lines = [
        f"{arguments['steps']} timesteps, of which strength runs the last {run}; "
        f"{len(index['scores'])} lists scored on {len(index['images']['search'])} images.",
        f"On {held_out} held-out images, against candidates of {arguments['reference_steps']} steps "
        "(mean squared error of the latents, PSNR of the images):",
    ]
    for name in ("uniform", "even", "found"):
        each = index[name]
        timesteps = " ".join(map(str, each["timesteps"]))
        lines.append(f"  {name:<8}{timesteps}: {each['held_out_error']:.4g}, {each['held_out_psnr']:.2f} dB")
    pairs = zip(uniform["held_out_errors"], found["held_out_errors"])
    nearer = sum(of_found < of_uniform for of_uniform, of_found in pairs)
    lines.append(f"The list found is nearer than the uniform schedule on {nearer} of {held_out}.")
    if not found["held_out_error"] < uniform["held_out_error"]:
        return "\n".join([*lines, "On average it is no nearer: leave denoising_timesteps out."])
    return "\n".join([*lines, json.dumps(index["hparams"])[1:-1]])
