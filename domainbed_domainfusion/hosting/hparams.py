"""Every hparam that the plugin adds, in one table: name, default, search, meaning, source.

Sources: "S" is the paper's supplement, "A" its abstract, "host" DomainBed's own habit, "ours" a choice that the paper
leaves open. A value is drawn exactly as the host draws its own: from `RandomState(seed_hash(random_seed, name))`.
"""

import difflib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from . import host

PAPER_LEARNING_RATES = (1e-4, 3e-4, 5e-4, 7e-4, 9e-4, 1e-3)
PAPER_CANDIDATES = (1, 3, 5)

#: Datasets that DomainBed's registry does not know, and the one of its own whose defaults they take.
HOST_EQUIVALENT = {"DigitStyles": "RotatedMNIST"}
#: Datasets of digits or of random tensors, for which the embedded diffusion model is the sensible default.
POCKET_DATASETS = ("Debug28", "Debug224", "RotatedMNIST", "ColoredMNIST", "DigitStyles")


@dataclass(frozen=True)
class Hparam:
    """One row of the table."""

    name: str
    default: Any
    valid: Callable[[Any], bool]
    range: str  # what `valid` accepts, in words
    meaning: str
    source: str
    pocket: Any = None  # the default on POCKET_DATASETS where it differs
    search: tuple | None = None  # values that a random draw chooses from; None: always the default

    def default_for(self, dataset: str) -> Any:
        return self.pocket if self.pocket is not None and dataset in POCKET_DATASETS else self.default

    def draw(self, dataset: str, random_seed: int) -> Any:
        """The host's way: each name has a generator of its own, so no hparam's draw moves another's."""
        if self.search is None:
            return self.default_for(dataset)
        random_state = np.random.RandomState(host.lib.misc.seed_hash(random_seed, self.name))
        return self.search[random_state.choice(len(self.search))]


def _number(low: float, high: float = float("inf"), open_low: bool = False) -> tuple[Callable[[Any], bool], str]:
    def valid(value):
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return plain and (low < value if open_low else low <= value) and value <= high

    return valid, (f"a number {'above' if open_low else 'from'} {low:g}" + (f" to {high:g}" if high < 1e300 else ""))


def _integer(low: int, high: float = float("inf")) -> tuple[Callable[[Any], bool], str]:
    in_range, text = _number(low, high)
    return (lambda value: in_range(value) and isinstance(value, int)), text.replace("a number", "a whole number")


def _one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in values), "one of " + ", ".join(values)


def _stages(value: Any) -> bool:
    """Whether it is [[timesteps, classes], …], the first rising to 1000 at most, the second not rising."""
    whole = _integer(1, 1000)[0]
    if not (
        isinstance(value, list)
        and value
        and all(isinstance(stage, list) and len(stage) == 2 and whole(stage[0]) and whole(stage[1]) for stage in value)
    ):
        return False
    return all(a[0] < b[0] and a[1] >= b[1] for a, b in itertools.pairwise(value))


STAGES = _stages, "a list of [timesteps, classes] pairs, timesteps rising to 1000 at most, classes not rising"
FLAG = (lambda value: isinstance(value, bool)), "true or false"
COMPILE = (lambda value: isinstance(value, bool) or value == "cuda_graphs"), "true, false or cuda_graphs"
TEXT = (lambda value: isinstance(value, str) and value != ""), "a text"
TEMPLATE = (lambda value: isinstance(value, str) and value.count("{}") == 1), "a text with one {} for the class name"
NAMES = (
    (lambda value: value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))),
    "null, or a list with one text per class in label order",
)
OPTIONAL_FOLDER = (lambda value: value is None or TEXT[0](value)), "null or the path of a folder"
OPTIONAL_TEXT = (lambda value: value is None or isinstance(value, str)), "null or a text"
TRUE_FALSE_FILE = (lambda value: isinstance(value, (bool, str))), "true, false or the path of a .safetensors file"

#: For every algorithm of the host, ours or not. They are accepted in --hparams; a run that does not name them keeps
#: exactly the host's own hparams.
BACKBONE = (
    Hparam(
        "backbone",
        "host",
        *TEXT,
        "host (its own choice), resnet18, resnet50, regnety_16gf_swag, mnist_cnn (the "
        "host's small CNN at any image size), or any timm name",
        "host",
    ),
    Hparam(
        "pretrained", True, *TRUE_FALSE_FILE, "the named backbone's published weights, none, or a local file", "host"
    ),
)

SAM = (
    Hparam(
        "rho",
        0.05,
        *_number(0, open_low=True),
        "radius of the neighbourhood in weight space",
        "Foret et al. 2021",
        search=(0.01, 0.02, 0.05, 0.1),
    ),
)

#: The frozen diffusion model, for every algorithm that uses one.
LDM = (
    Hparam(
        "ldm",
        "CompVis/stable-diffusion-v1-4",
        *TEXT,
        "hub id, folder or .safetensors file of a Stable Diffusion 1.x, or pocket, the embedded one",
        "S",
        pocket="pocket",
    ),
    Hparam("ldm_revision", None, *OPTIONAL_TEXT, "the hub's revision", "ours"),
    Hparam(
        "ldm_dtype",
        "auto",
        *_one_of("auto", "float32", "float16", "bfloat16"),
        "auto: float32 on a CPU, float16 on a GPU",
        "ours",
    ),
    Hparam("image_size", 320, *_integer(8), "pixels a side inside the diffusion model", "S", pocket=32),
    Hparam("prompt_template", "a photo of a {}", *TEMPLATE, "prompt of a class; no domain name is in it", "ours"),
    Hparam("class_names", None, *NAMES, "replaces the dataset's own class names in the prompts", "ours"),
)

DOMAINFUSION = (
    # learning
    Hparam(
        "lr",
        1e-4,
        *_number(0, open_low=True),
        "Adam's learning rate at step 0",
        "S (searched; default ours)",
        pocket=1e-3,
        search=PAPER_LEARNING_RATES,
    ),
    Hparam("lr_schedule", "cosine", *_one_of("cosine", "constant"), "over the run's real length, to zero", "S"),
    Hparam("weight_decay", 5e-4, *_number(0), "Adam's weight decay", "S"),
    Hparam("batch_size", 16, *_integer(1), "images per training domain and step", "S"),
    Hparam("lambda1", 1.0, *_number(0), "weight of the raw minibatch's cross-entropy", "S"),
    Hparam("lambda2", 0.5, *_number(0), "weight of the Latent Distillation loss", "S"),
    Hparam("lambda3", 0.5, *_number(0), "weight of the generated minibatch's cross-entropy", "S"),
    Hparam(
        "ldm_decoder",
        None,
        *OPTIONAL_TEXT,
        "folder or hub id of an AutoencoderTiny that decodes in the VAE's place",
        "ours",
    ),
    Hparam(
        "ldm_compile",
        False,
        *COMPILE,
        "torch.compile for the U-Net and the decoder in generation, also as "
        "cuda_graphs: minutes at the start, for long runs on a GPU",
        "ours",
    ),
    # generation: Algorithm 1, lines 4 to 13
    Hparam("candidates", 3, *_integer(1), "N_c, images generated for each one kept", "S", search=PAPER_CANDIDATES),
    Hparam("generation_interval", 5, *_integer(1), "Itv, epochs from one round of generation to the next", "S"),
    Hparam(
        "generation_budget",
        0,
        *_integer(0),
        "images in the generate-dataset, over all domains; 0: every training image",
        "ours",
    ),
    Hparam(
        "updating", True, *FLAG, "true: a round starts from earlier results; false: one round, in the first epoch", "S"
    ),
    Hparam(
        "sampling_strategy",
        True,
        *FLAG,
        "choose content and style among the candidates; false: one candidate, as it is",
        "S",
    ),
    Hparam(
        "content_weight", 0.4, *_number(0, 1), "lambda_s, similarity against confidence in the choice of content", "S"
    ),
    Hparam(
        "content_feature",
        "classifier",
        *_one_of("classifier", "content"),
        "what the cosine compares: the classifier's features, or the instance-normalised image itself",
        "ours",
    ),
    Hparam("style_space", "pixel", *_one_of("pixel", "latent"), "where style and content are separated", "ours"),
    Hparam("style_divergence", "poisson", *_one_of("poisson", "softmax"), "the KL between two vectors", "ours"),
    Hparam(
        "denoising_steps",
        12,
        *_integer(1, 1000),
        "steps of the whole schedule; strength runs a part of them",
        "ours (S: fewer than 50)",
    ),
    Hparam("strength", 0.8, *_number(0, 1, open_low=True), "share of the schedule that image-to-image runs", "S"),
    Hparam("guidance_scale", 7.5, *_number(0), "classifier-free guidance; 1 and less: none", "S"),
    Hparam(
        "guidance_interval",
        1.0,
        *_number(0, 1),
        "share of the executed steps, from the first, that are guided",
        "ours (Kynkäänniemi et al. 2024)",
    ),
    Hparam(
        "scheduler",
        "ddim",
        *_one_of("ddim", "pndm", "dpmsolver++", "lcm", "folder"),
        "solver; lcm: for latent consistency models only; folder: the model's own",
        "ours",
    ),
    Hparam(
        "timestep_spacing",
        "trailing",
        *_one_of("trailing", "leading"),
        "trailing begins at the noise that "
        "strength names even with few steps; leading, diffusers' default here, begins lower",
        "ours (Lin et al. 2024)",
    ),
    Hparam("generation_batch", 8, *_integer(1), "source images in one batch of generation", "ours", pocket=32),
    Hparam("gallery", 2, *_integer(0), "images per domain whose versions are kept as pictures", "ours"),
    Hparam(
        "save_generated",
        "none",
        *_one_of("none", "last", "all"),
        "rounds of the generate-dataset kept in the job "
        "folder, 3 x image_size x image_size bytes an image; all: an interrupted run that is started again there "
        "takes them in place of generating them",
        "ours",
        pocket="all",
    ),
    Hparam(
        "candidate_cache",
        None,
        *OPTIONAL_FOLDER,
        "folder in which the runs of a sweep share the candidates of "
        "their first rounds, which are then seeded by the image in place of the run",
        "ours",
    ),
    # Latent Distillation: Algorithm 2
    Hparam(
        "ld_gradient", "full", *_one_of("full", "sds"), "through the U-Net as listed, or without its Jacobian", "S / A"
    ),
    Hparam(
        "ld_gradient_mode",
        "auto",
        *_one_of("auto", "forward", "reverse"),
        "how it is computed: forward-mode "
        "differentiation, reverse, or forward unless the model has an operation that it lacks or, on a GPU, reverse "
        "fits and is clearly faster",
        "ours",
    ),
    Hparam("ld_input", "generated", *_one_of("generated", "raw"), "which minibatch it sees", "S (listing)"),
    Hparam(
        "ld_corruption",
        "contrast",
        *_one_of("contrast", "blur", "pepper", "mask", "none"),
        "how the confidence corrupts the image",
        "S",
    ),
    Hparam("ld_draws", 1, *_integer(1), "T, draws of (t, noise) per image", "ours"),
    Hparam("ld_weighting", "uniform", *_one_of("uniform", "one_minus_alpha_bar", "snr"), "w[t]", "ours"),
    Hparam("ld_images", 0, *_integer(0), "images of the minibatch that it sees in a step; 0: all", "ours"),
    Hparam(
        "ld_batch", 0, *_integer(0), "images at once in its passes (memory only); 0: as many as fit, measured", "ours"
    ),
)

ZERO_SHOT = (Hparam("scoring_batch", 32, *_integer(1), "U-Net evaluations at once (memory only)", "ours", pocket=128),)

DIFFUSION_CLASSIFIER = (
    Hparam(
        "dc_stages",
        [[20, 5], [100, 1]],
        *STAGES,
        "staged elimination: after so many timesteps in all, so many classes are kept",
        "Li et al. 2023 (numbers ours)",
        pocket=[[1, 5], [3, 1]],
    ),
)

TEXT_TO_IMAGE_CLASSIFIER = (
    Hparam(
        "t2i_min_scores",
        20,
        *_integer(2),
        "scores of every class before the first is pruned",
        "Clark & Jaini 2023",
        pocket=2,
    ),
    Hparam("t2i_max_scores", 100, *_integer(1), "scores of a class at most", "ours (Clark & Jaini: 2000)", pocket=2),
    Hparam(
        "t2i_cutoff", 2e-3, *_number(0, 1), "p of the paired t-test under which a class is pruned", "Clark & Jaini 2023"
    ),
)

TABLES = {
    "SAM": SAM,
    "DomainFusion": BACKBONE + LDM + DOMAINFUSION,
    "DiffusionClassifier": LDM + ZERO_SHOT + DIFFUSION_CLASSIFIER,
    "TextToImageClassifier": LDM + ZERO_SHOT + TEXT_TO_IMAGE_CLASSIFIER,
}
ROWS = {
    row.name: row
    for row in (*BACKBONE, *SAM, *LDM, *DOMAINFUSION, *ZERO_SHOT, *DIFFUSION_CLASSIFIER, *TEXT_TO_IMAGE_CLASSIFIER)
}


def added_defaults(algorithm: str, dataset: str) -> dict[str, Any]:
    """What the plugin adds to (or replaces in) the host's default hparams of a pair; plain JSON values."""
    return {row.name: row.default_for(dataset) for row in TABLES.get(algorithm, ())}


def added_draws(algorithm: str, dataset: str, random_seed: int) -> dict[str, Any]:
    """The same for the host's random hparams."""
    return {row.name: row.draw(dataset, random_seed) for row in TABLES.get(algorithm, ())}


#: Rows whose name the host uses too: their ranges bind our algorithm, not the host's.
HOST_NAMES = ("lr", "weight_decay", "batch_size")


def check_values(hparams: dict[str, Any]) -> None:
    """Raise InputError for the first value out of its range; keys that are not in our table are passed over."""
    for name, value in hparams.items():
        row = ROWS.get(name)
        if row is not None and not row.valid(value):
            raise InputError(f"The hparam {name} is {value!r}, but must be {row.range}: {row.meaning}.")
    if hparams.get("backbone", "host") == "host" and hparams.get("pretrained", True) is not True:
        raise InputError(
            "The hparam pretrained needs a named backbone, because the host's own choice always loads its "
            'weights: add for example "backbone": "resnet18" to --hparams.'
        )


def check_names(names: list[str], known: set[str]) -> None:
    """Raise InputError for the first name that is not among `known`; it names the nearest known one."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)
            raise InputError(f"Nobody knows the hparam {name!r} in --hparams: did you mean {nearest[0]!r}?")


def markdown_table() -> str:
    """The table as the README shows it: `python -m domainbed_domainfusion.hosting.hparams`."""
    lines = ["| hparam | default | digits | searched | meaning | source |", "|---|---|---|---|---|---|"]
    for row in ROWS.values():
        values = [
            json.dumps(row.default),
            "" if row.pocket is None else json.dumps(row.pocket),
            "" if row.search is None else ", ".join(f"{value:g}" for value in row.search),
        ]
        lines.append(f"| `{row.name}` | {' | '.join(values)} | {row.meaning} | {row.source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
