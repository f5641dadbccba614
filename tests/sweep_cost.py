"""GPU-hours and disk of a sweep's jobs, counted from their arguments by the formula of sweeps/README.md.

The FLOP counts (2 · MAC) of Stable Diffusion v1 are at 320 × 320, those of the classifiers at 224 × 224.
"""

import functools
import json
import math

from domainbed_domainfusion.estimate.benchmarks import BENCHMARKS
from domainbed_domainfusion.hosting import host

IMAGES = {name: benchmark.images for name, benchmark in BENCHMARKS.items()}  # per environment, in the host's order
CLASSES = {name: benchmark.classes for name, benchmark in BENCHMARKS.items()}

UNET, ENCODER, DECODER = 286.5e9, 428.0e9, 974.1e9
GRADIENT = {"full": 2.27, "sds": 1.6}  # time of the LD gradient / of the bare forward
FORWARD = {"resnet50": 8.18e9, "regnety_16gf_swag": 31.82e9}
FEATURES = {"resnet50": 2048, "regnety_16gf_swag": 3024}
BODY = {"resnet50": 25.610e6 - 2.049e6, "regnety_16gf_swag": 83.713e6 - 3.025e6}  # numbers in the state_dict, no head
HALF, SINGLE, USED = 790e12, 67e12, 0.40  # peak FLOP/s of an H200 in bf16 and in fp32, and the share assumed
PICTURE = 3 * 320 * 320  # bytes of a gallery picture at most


def hparams_of(args: dict) -> dict:
    """As the host's train script chooses them."""
    return {
        **_chosen(args["algorithm"], args["dataset"], args["hparams_seed"], args["trial_seed"]),
        **json.loads(args.get("hparams") or "{}"),
    }


@functools.cache
def _chosen(algorithm: str, dataset: str, hparams_seed: int, trial_seed: int) -> dict:
    if hparams_seed == 0:
        return host.hparams_registry.default_hparams(algorithm, dataset)
    seed = host.lib.misc.seed_hash(hparams_seed, trial_seed)
    return host.hparams_registry.random_hparams(algorithm, dataset, seed)


def in_splits(args: dict) -> list[int]:
    return [n - int(n * args["holdout_fraction"]) for n in IMAGES[args["dataset"]]]


def steps_per_epoch(args: dict, batch_size: int) -> float:
    return min(in_splits(args)) / batch_size


def rounds(args: dict, hparams: dict) -> int:
    """How many generation rounds begin within the run: at the first step of every Itv-th epoch."""
    if hparams["lambda3"] == 0 and (hparams["lambda2"] == 0 or hparams["ld_input"] == "raw"):
        return 0
    if not hparams["updating"]:
        return 1
    epoch, interval, number = steps_per_epoch(args, hparams["batch_size"]), hparams["generation_interval"], 0
    while math.ceil(((number + 1) * interval - 1) * epoch) < steps(args):
        number += 1
    return number


def steps(args: dict) -> int:
    return args.get("steps") or host.datasets.MultipleDomainDataset.N_STEPS


def generated(args: dict, hparams: dict) -> tuple[int, int]:
    """(images kept, candidates made) over the whole run."""
    training = [n for i, n in enumerate(in_splits(args)) if i not in args["test_envs"]]
    kept = rounds(args, hparams) * min(hparams["generation_budget"] or sum(training), sum(training))
    return kept, kept * (hparams["candidates"] if hparams["sampling_strategy"] else 1)


def hours(args: dict) -> float:
    """GPU-hours of one job."""
    hparams = hparams_of(args)
    if "Classifier" in args["algorithm"]:
        return sum(IMAGES[args["dataset"]]) * _scores(args, hparams) / (USED * HALF) / 3600
    forward = FORWARD[hparams["backbone"]]
    batch = hparams["batch_size"] * (len(IMAGES[args["dataset"]]) - len(args["test_envs"]))
    frequency = getattr(host.datasets, args["dataset"]).CHECKPOINT_FREQ
    evaluations = len({*range(0, steps(args), frequency), steps(args) - 1})
    passes = {"ERM": 1, "SAM": 2, "DomainFusion": 2}[args["algorithm"]]  # DomainFusion: raw and generated minibatch
    classifier = steps(args) * batch * passes * 3 * forward + evaluations * sum(IMAGES[args["dataset"]]) * forward
    diffusion = 0.0
    if args["algorithm"] == "DomainFusion":
        kept, candidates = generated(args, hparams)
        executed = int(hparams["denoising_steps"] * hparams["strength"])
        diffusion += kept * ENCODER + candidates * (2 * executed * UNET + DECODER)
        if hparams["lambda2"] > 0:
            seen = min(hparams["ld_images"] or batch, batch) * hparams["ld_draws"]
            diffusion += steps(args) * seen * (ENCODER + UNET) * GRADIENT[hparams["ld_gradient"]]
    return (diffusion / (USED * HALF) + classifier / (USED * SINGLE)) / 3600


def _scores(args: dict, hparams: dict) -> float:
    """FLOP for one image; of TextToImageClassifier at most, as its pruning depends on the images."""
    classes = CLASSES[args["dataset"]]
    if args["algorithm"] == "TextToImageClassifier":
        return ENCODER + classes * hparams["t2i_max_scores"] * UNET
    evaluations, seen, left = 0, 0, classes
    for timesteps, keep in hparams["dc_stages"]:
        evaluations += (timesteps - seen) * left
        seen, left = timesteps, min(left, keep)
    return ENCODER + evaluations * UNET


def disk(args: dict) -> float:
    """Bytes of one job's folder: model.pkl and the gallery's pictures."""
    hparams = hparams_of(args)
    if "Classifier" in args["algorithm"]:
        return 0.0
    backbone = hparams["backbone"]
    model = 4 * (BODY[backbone] + CLASSES[args["dataset"]] * (FEATURES[backbone] + 1))
    if args["algorithm"] != "DomainFusion":
        return model
    followed = hparams["gallery"] * (len(IMAGES[args["dataset"]]) - len(args["test_envs"]))
    return model + followed * (rounds(args, hparams) + 1) * PICTURE
