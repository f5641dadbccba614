"""Every hparam that the plugin adds, in one table: name, default, search, range, meaning, source, and what it changes.

The rows that concern a classifier without a diffusion model stand in `classifier_hparams`, those of the methods that
papers compare with in `rival_hparams`, those of diffusion at test time in `test_time_hparams`, the others here.

Sources: "S" is the paper's supplement, "A" its abstract, "host" DomainBed's own habit, "ours" a choice that the paper
leaves open. `changes` and `time` are the one place that says what an hparam decides: the cache of candidates, a run's
identity, the provenance of generated images and the groups of an estimate's calibration derive from them.
"""

import dataclasses
import difflib
import itertools
import json
from typing import Any

from ..errors import InputError
from .classifier_hparams import AUGMIX, BACKBONE, EVERY_ALGORITHM, RANDAUGMENT, SAGM, SAM, TRAM, UDIM
from .hparam import (
    ANSWERS,
    CANDIDATES,
    CHOICE,
    CLASSIFIER,
    COMPILE,
    DEVICES,
    FALLING,
    FLAG,
    KEPT,
    LD,
    NAMES,
    NO_TIME,
    OPTIONAL_FOLDER,
    OPTIONAL_TEXT,
    PROPORTIONAL,
    ROUNDS,
    SCORES,
    SHARES,
    SPEED,
    STAGES,
    TEMPLATE,
    TEXT,
    TIME,
    Hparam,
    integer,
    number,
    one_of,
    or_as_preset,
    or_null,
)
from .rival_hparams import CDGA_GUIDES, RIVALS
from .test_time_hparams import LDM_DEFAULTS, LDM_UNUSED, TEST_TIME

PAPER_LEARNING_RATES = (1e-4, 3e-4, 5e-4, 7e-4, 9e-4, 1e-3)
PAPER_CANDIDATES = (1, 3, 5)

#: Datasets that DomainBed's registry does not know, and the one of its own whose defaults they take.
HOST_EQUIVALENT = {"DigitStyles": "RotatedMNIST"}


def _is_set(value: Any) -> bool:
    return value is not None


def _with_default(row: Hparam, defaults: dict[str, Any]) -> Hparam:
    """The row with the default that `defaults` has for it; the row itself if it has none."""
    return (
        dataclasses.replace(row, default=defaults[row.name], pocket=None, search=None) if row.name in defaults else row
    )


# fmt: off
#: The frozen diffusion model, for every algorithm that uses one.
LDM = (
    Hparam(name="ldm", default="CompVis/stable-diffusion-v1-4", pocket="pocket", range=TEXT,
           meaning="hub id, folder or .safetensors file of a Stable Diffusion 1.x or 2.x, or pocket, the embedded one; "
                   "`{test_envs}` in it stands for the names of the test environments",
           source="S", changes=(CANDIDATES, LD, SCORES, ANSWERS), time=TIME, recorded_as="model"),
    Hparam(name="ldm_revision", default=None, range=OPTIONAL_TEXT,
           meaning="the hub's revision",
           source="ours", changes=(CANDIDATES, LD, SCORES, ANSWERS), time=TIME, recorded_as="revision"),
    Hparam(name="ldm_dtype", default="auto", range=one_of("auto", "float32", "float16", "bfloat16"),
           meaning="auto: float32 on a CPU, float16 on a GPU",
           source="ours", changes=(CANDIDATES, LD, SCORES, ANSWERS), time=TIME, recorded_as="dtype"),
    Hparam(name="image_size", default=320, pocket=32, range=integer(8),
           meaning="pixels a side inside the diffusion model",
           source="S", changes=(CANDIDATES, LD, SCORES, ANSWERS), time=TIME),
    Hparam(name="prompt_template", default="a photo of a {}", range=TEMPLATE,
           meaning="prompt of a class; no domain name is in it",
           source="ours", changes=(CANDIDATES, LD, SCORES, ANSWERS), time=NO_TIME, recorded_as="prompt"),
    Hparam(name="class_names", default=None, range=NAMES,
           meaning="replaces the dataset's own class names in the prompts",
           source="ours", changes=(CANDIDATES, LD, SCORES, ANSWERS), time=NO_TIME, recorded_as="prompt"),
)

DOMAINFUSION = (
    # Learning.
    Hparam(name="lr", default=1e-4, pocket=1e-3, search=PAPER_LEARNING_RATES, range=number(0, open_low=True),
           meaning="Adam's learning rate at step 0",
           source="S (searched; default ours)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="lr_schedule", default="cosine", range=one_of("cosine", "constant"),
           meaning="over the run's real length, to zero",
           source="S", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="weight_decay", default=5e-4, range=number(0),
           meaning="Adam's weight decay",
           source="S", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="batch_size", default=16, range=integer(1),
           meaning="images per training domain and step",
           source="S", changes=(CLASSIFIER,), time=PROPORTIONAL),
    Hparam(name="lambda1", default=1.0, range=number(0),
           meaning="weight of the raw minibatch's cross-entropy",
           source="S", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="lambda2", default=0.5, pocket=0.0, range=number(0),
           meaning="weight of the Latent Distillation loss",
           source="S; digits: sweeps/digits/choices.txt", changes=(CLASSIFIER, LD), time=TIME),
    Hparam(name="lambda3", default=0.5, range=number(0),
           meaning="weight of the generated minibatch's cross-entropy",
           source="S", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="ldm_decoder", default=None, range=OPTIONAL_TEXT,
           meaning="folder or hub id of an AutoencoderTiny that decodes in the VAE's place",
           source="ours", changes=(CHOICE,), time=TIME),
    Hparam(name="ldm_compile", default=False, range=COMPILE,
           meaning="torch.compile for the U-Net and the decoder in generation, also as cuda_graphs: minutes at the "
                   "start, for long runs on a GPU",
           source="ours", changes=(SPEED,), time=TIME),
    # Generation: Algorithm 1, lines 4 to 13.
    Hparam(name="candidates", default=3, pocket=1, search=PAPER_CANDIDATES, range=integer(1),
           meaning="N_c, images generated for each one kept",
           source="S; digits: sweeps/digits/choices.txt", changes=(CHOICE,), time=PROPORTIONAL),
    Hparam(name="generation_interval", default=5, range=integer(1),
           meaning="Itv, epochs from one round of generation to the next",
           source="S", changes=(ROUNDS,), time=NO_TIME),
    Hparam(name="generation_budget", default=0, range=integer(0),
           meaning="images in the generate-dataset, over all domains; 0: every training image",
           source="ours", changes=(ROUNDS,), time=NO_TIME),
    Hparam(name="updating", default=True, range=FLAG,
           meaning="true: a round starts from earlier results; false: one round, in the first epoch",
           source="S", changes=(ROUNDS,), time=NO_TIME),
    Hparam(name="sampling_strategy", default=True, range=FLAG,
           meaning="choose content and style among the candidates; false: one candidate, as it is",
           source="S", changes=(CHOICE,), time=TIME),
    Hparam(name="early_choice", default=None, range=or_null(integer(1)),
           meaning="content and style are chosen after so many steps, by what the U-Net predicts there, and only the "
                   "chosen candidates are finished; null: after the last step",
           source="ours", changes=(CHOICE,), time=TIME),
    Hparam(name="content_weight", default=0.4, range=number(0, 1),
           meaning="lambda_s, similarity against confidence in the choice of content",
           source="S", changes=(CHOICE,), time=NO_TIME),
    Hparam(name="content_feature", default="classifier", range=one_of("classifier", "content"),
           meaning="what the cosine compares: the classifier's features, or the instance-normalised image itself",
           source="ours", changes=(CHOICE,), time=TIME),
    Hparam(name="style_space", default="pixel", range=one_of("pixel", "latent"),
           meaning="where style and content are separated",
           source="ours", changes=(CHOICE,), time=TIME),
    Hparam(name="style_divergence", default="poisson", range=one_of("poisson", "softmax"),
           meaning="the KL between two vectors",
           source="ours", changes=(CHOICE,), time=TIME),
    Hparam(name="candidate_source", default="image", range=one_of("image", "prompt"),
           meaning="image: image-to-image from the last version; prompt: text-to-image from pure noise, a control",
           source="S; ours: prompt", changes=(CANDIDATES,), time=TIME),
    Hparam(name="denoising_steps", default=12, pocket=4, range=integer(1, 1000),
           meaning="steps of the whole schedule; strength runs a part of them",
           source="ours (S: fewer than 50); digits: sweeps/digits/choices.txt", changes=(CANDIDATES,), time=TIME),
    Hparam(name="strength", default=0.8, pocket=1.0, range=number(0, 1, open_low=True),
           meaning="share of the schedule that image-to-image runs",
           source="S; digits: sweeps/digits/choices.txt", changes=(CANDIDATES,), time=TIME),
    Hparam(name="guidance_scale", default=7.5, range=number(0),
           meaning="classifier-free guidance; 1 and less: none",
           source="S", changes=(CANDIDATES,), time=TIME),
    Hparam(name="guidance_interval", default=1.0, range=number(0, 1),
           meaning="share of the executed steps, from the first, that are guided",
           source="ours (Kynkäänniemi et al. 2024)", changes=(CANDIDATES,), time=TIME),
    Hparam(name="guidance_agreement", default=None, range=or_null(number(-1, 1)),
           meaning="Adaptive Guidance: a candidate whose conditional and unconditional noise have a cosine above this, "
                   "0.991 in the paper, is not guided any more; null: off",
           source="ours (Castillo et al. 2023)", changes=(CANDIDATES,), time=TIME),
    Hparam(name="reuse_interval", default=1, range=integer(1),
           meaning="DeepCache: the deep layers of the U-Net run in every k-th denoising step, the other steps reuse "
                   "their features; 1: off",
           source="ours (Ma et al. 2024)", changes=(CANDIDATES,), time=TIME),
    Hparam(name="denoising_timesteps", default=None, range=FALLING,
           meaning="timesteps of the model's training schedule, in place of denoising_steps and timestep_spacing; for "
                   "dpmsolver++ and lcm; `domainfusion search-timesteps` searches some",
           source="ours (AutoDiffusion, Li et al. 2023)", changes=(CANDIDATES,), time=TIME),
    Hparam(name="scheduler", default="ddim", range=one_of("ddim", "pndm", "dpmsolver++", "lcm", "folder"),
           meaning="solver; lcm: for latent consistency models only; folder: the model's own",
           source="ours", changes=(CANDIDATES,), time=TIME),
    Hparam(name="timestep_spacing", default="trailing", range=one_of("trailing", "leading"),
           meaning="trailing begins at the noise that strength names even with few steps; leading, diffusers' "
                   "default here, begins lower",
           source="ours (Lin et al. 2024)", changes=(CANDIDATES,), time=TIME),
    Hparam(name="generation_batch", default=8, pocket=32, range=integer(1),
           meaning="source images in one batch of generation",
           source="ours", changes=(SPEED,), time=TIME),
    Hparam(name="generation_devices", default=None, range=DEVICES,
           meaning="devices that a round of generation is divided over, each with its own diffusion model in its own "
                   "process; all: every GPU; null: the run's own device. What candidate_cache lacks is made there too",
           source="ours", changes=(SPEED,), time=TIME),
    Hparam(name="gallery", default=2, range=integer(0),
           meaning="images per domain whose versions are kept as pictures",
           source="ours", changes=(KEPT,), time=NO_TIME),
    Hparam(name="save_generated", default="none", pocket="all", range=one_of("none", "last", "all"),
           meaning="rounds of the generate-dataset kept in the job folder, 3 x image_size x image_size bytes an "
                   "image; all: an interrupted run that is started again there takes them in place of generating "
                   "them",
           source="ours", changes=(KEPT,), time=NO_TIME),
    Hparam(name="candidate_cache", default=None, range=OPTIONAL_FOLDER,
           meaning="folder in which the runs of a sweep share the candidates of their first rounds, which are then "
                   "seeded by the image in place of the run",
           source="ours", changes=(ROUNDS, KEPT), time=NO_TIME, identify=_is_set),
    # Latent Distillation: Algorithm 2.
    Hparam(name="ld_preset", default="mean", pocket="guidance", range=one_of("mean", "listing", "score", "guidance"),
           meaning="a reading of Algorithm 2, for those of the rows below that are null; mean: the listing, with "
                   "means over a latent's elements; listing: to the letter; score: the earlier version's form; "
                   "guidance: the part of score that the prompt makes",
           source="ours / S / R / ours; digits: sweeps/digits/choices.txt", changes=(LD,), time=TIME),
    Hparam(name="ld_when", default=None, range=or_as_preset(one_of("step", "generation")),
           meaning="step: on every step's minibatch; generation: on each image when it is generated, whose coefficient "
                   "then holds until it is generated again",
           source="S: generation; ours: step", changes=(LD,), time=TIME),
    Hparam(name="ld_gradient", default=None, range=or_as_preset(one_of("full", "sds", "guidance")),
           meaning="full: through the U-Net as listed; sds: without its Jacobian; guidance: only the difference that "
                   "the prompt makes",
           source="S / A / ours", changes=(LD,), time=TIME),
    Hparam(name="ld_guidance_scale", default=None, range=or_as_preset(number(0)),
           meaning="classifier-free guidance of LD's noise prediction; 1: none",
           source="S / R", changes=(LD,), time=TIME),
    Hparam(name="ld_reduction", default=None, range=or_as_preset(one_of("mean", "sum")),
           meaning="over a latent's elements",
           source="S: sum; ours: mean", changes=(LD,), time=NO_TIME),
    Hparam(name="ld_timesteps", default=None, range=or_as_preset(SHARES),
           meaning="lowest and highest t as shares of the schedule; t is uniform between them",
           source="ours", changes=(LD,), time=NO_TIME),
    Hparam(name="ld_gradient_mode", default="auto", range=one_of("auto", "forward", "reverse"),
           meaning="how it is computed: forward-mode differentiation, reverse, or forward unless the model has an "
                   "operation that it lacks or, on a GPU, reverse fits and is clearly faster",
           source="ours", changes=(SPEED,), time=TIME),
    Hparam(name="ld_input", default="generated", range=one_of("generated", "raw"),
           meaning="which minibatch it sees",
           source="S (listing)", changes=(LD,), time=TIME),
    Hparam(name="ld_prompts", default="class", range=one_of("class", "next_class"),
           meaning="class: each image under its own class's prompt; next_class: under that of the class after it, a "
                   "control",
           source="S; ours: next_class", changes=(LD,), time=NO_TIME),
    Hparam(name="ld_corruption", default="contrast", range=one_of("contrast", "blur", "pepper", "mask", "none"),
           meaning="how the confidence corrupts the image",
           source="S", changes=(LD,), time=TIME),
    Hparam(name="ld_draws", default=1, range=integer(1),
           meaning="T, draws of (t, noise) per image",
           source="ours", changes=(LD,), time=TIME),
    Hparam(name="ld_weighting", default=None,
           range=or_as_preset(one_of("uniform", "one_minus_alpha_bar", "snr")),
           meaning="w[t]",
           source="ours", changes=(LD,), time=NO_TIME),
    Hparam(name="ld_stratified", default=False, range=FLAG,
           meaning="true: the timesteps of a minibatch lie in equal parts of their range, one in each",
           source="ours", changes=(LD,), time=NO_TIME),
    Hparam(name="ld_antithetic", default=False, range=FLAG,
           meaning="true: draws are pairs of one t with the noise and with minus the noise; ld_draws must be even",
           source="ours", changes=(LD,), time=NO_TIME),
    Hparam(name="ld_encoder", default=None, range=OPTIONAL_TEXT,
           meaning="folder or hub id of an AutoencoderTiny that encodes in the VAE's place, here alone",
           source="ours", changes=(LD,), time=TIME),
    Hparam(name="ld_images", default=0, range=integer(0),
           meaning="images of the minibatch that it sees in a step; 0: all",
           source="ours", changes=(LD,), time=TIME),
    Hparam(name="ld_interval", default=1, range=integer(1),
           meaning="k, with ld_when step: LD is computed in every k-th step, with k times its weight",
           source="ours", changes=(LD,), time=TIME),
    Hparam(name="ld_batch", default=0, range=integer(0),
           meaning="images at once in its passes (memory only); 0: as many as fit, measured",
           source="ours", changes=(SPEED,), time=TIME),
)

ZERO_SHOT = (
    Hparam(name="scoring_batch", default=32, pocket=128, range=integer(1),
           meaning="U-Net evaluations at once (memory only)",
           source="ours", changes=(SPEED,), time=TIME),
)

DIFFUSION_CLASSIFIER = (
    Hparam(name="dc_stages", default=[[20, 5], [100, 1]], pocket=[[1, 5], [3, 1]], range=STAGES,
           meaning="staged elimination: after so many timesteps in all, so many classes are kept",
           source="Li et al. 2023 (numbers ours)", changes=(SCORES,), time=TIME),
)

TEXT_TO_IMAGE_CLASSIFIER = (
    Hparam(name="t2i_min_scores", default=20, pocket=2, range=integer(2),
           meaning="scores of every class before the first is pruned",
           source="Clark & Jaini 2023", changes=(SCORES,), time=TIME),
    Hparam(name="t2i_max_scores", default=100, pocket=2, range=integer(1),
           meaning="scores of a class at most",
           source="ours (Clark & Jaini: 2000)", changes=(SCORES,), time=TIME),
    Hparam(name="t2i_cutoff", default=2e-3, range=number(0, 1),
           meaning="p of the paired t-test under which a class is pruned",
           source="Clark & Jaini 2023", changes=(SCORES,), time=TIME),
)

# fmt: on

#: What `Synthetic` changes in DomainFusion's defaults.
SYNTHETIC = {"candidate_source": "prompt", "sampling_strategy": False, "lambda2": 0.0}

#: What `CDGA` has of DomainFusion's rows, with these defaults in their place.
CDGA_ROWS = ("ldm_decoder", "ldm_compile", "generation_budget", "denoising_steps", "strength", "guidance_scale",
             "guidance_interval", "guidance_agreement", "reuse_interval", "denoising_timesteps", "scheduler",
             "timestep_spacing", "generation_batch", "gallery", "save_generated", "candidate_cache")  # fmt: skip
CDGA_DEFAULTS = {"prompt_template": "a {}", "denoising_steps": 50, "strength": 0.75}
CDGA = (
    tuple(
        dataclasses.replace(row, default=CDGA_DEFAULTS.get(row.name, row.default))
        for row in LDM + DOMAINFUSION
        if row in LDM or row.name in CDGA_ROWS
    )
    + CDGA_GUIDES
)


def _at_test_time(algorithm: str) -> tuple[Hparam, ...]:
    """All rows of a method that uses the diffusion model at test time."""
    defaults = LDM_DEFAULTS.get(algorithm, {})
    used = [row for row in LDM if row.name not in LDM_UNUSED.get(algorithm, ())]
    own = tuple(dataclasses.replace(row, default=defaults.get(row.name, row.default)) for row in used)
    return own + TEST_TIME[algorithm]


TABLES = {
    "SAM": SAM,
    "SAGM": SAM + SAGM,
    "TRAM": TRAM,
    "UDIM": SAM + UDIM,
    **RIVALS,
    "RandAugment": RANDAUGMENT,
    "AugMix": AUGMIX,
    "DomainFusion": BACKBONE + LDM + DOMAINFUSION,
    "Synthetic": BACKBONE + LDM + tuple(_with_default(row, SYNTHETIC) for row in DOMAINFUSION),
    "CDGA": BACKBONE + CDGA,
    **{algorithm: _at_test_time(algorithm) for algorithm in TEST_TIME},
    "DiffusionClassifier": LDM + ZERO_SHOT + DIFFUSION_CLASSIFIER,
    "TextToImageClassifier": LDM + ZERO_SHOT + TEXT_TO_IMAGE_CLASSIFIER,
}
#: name → row. `Synthetic`'s rows have the names of DomainFusion's, which come first and stay.
ROWS: dict[str, Hparam] = {}
for _row in itertools.chain(EVERY_ALGORITHM, *TABLES.values()):
    ROWS.setdefault(_row.name, _row)


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
            raise InputError(f"The hparam {name} is {value!r}, but must be {row.range[1]}: {row.meaning}.")
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
    """The table as the documentation shows it: `python -m domainbed_domainfusion.hosting.hparams`."""
    lines = ["| hparam | default | digits | searched | meaning | changes | source |", "|---|---|---|---|---|---|---|"]
    for row in ROWS.values():
        values = [
            json.dumps(row.default),
            "" if row.pocket is None else json.dumps(row.pocket),
            ""
            if row.search is None
            else ", ".join(value if isinstance(value, str) else f"{value:g}" for value in row.search),
        ]
        changes = ", ".join(row.changes)
        lines.append(f"| `{row.name}` | {' | '.join(values)} | {row.meaning} | {changes} | {row.source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
