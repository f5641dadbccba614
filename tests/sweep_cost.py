"""Prices for what `estimate.counting` counts in a sweep's jobs: GPU-hours and disk by the formula of sweeps/README.md.

This file holds prices only: FLOP per unit, the GPU's speed and bytes, each with its source. `test_sweep_cost.py` counts
those again that can be counted.
"""

import functools
import json

from benchmarks.candidates import PEAK
from domainbed_domainfusion.data.benchmarks import BENCHMARKS
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting.job_hparams import hparams_of
from domainbed_domainfusion.hosting.ld_presets import with_ld_preset

# FLOP (2 · MAC) for one image. The diffusion model is Stable Diffusion v1 at 320 × 320 pixels: one evaluation of the
# U-Net, and the VAE's two halves. The classifiers are at 224 × 224. Source: torch.utils.flop_counter.
SIZE = 320
UNET, ENCODER, DECODER = 286.5e9, 428.0e9, 974.1e9
FORWARD = {"resnet50": 8.18e9, "regnety_16gf_swag": 31.82e9}
PASSES = 3  # forward and backward: a backward pass takes about two forward passes
# Minibatches in one step, in those of ERM: SAM takes two gradients, DomainFusion has the raw and the generated one.
MINIBATCHES = {"ERM": 1, "SAM": 2, "DomainFusion": 2}
# Time of the LD gradient ÷ time of its bare forward pass. Source: our measurement on a CPU (full); the encoder needs a
# tangent and the U-Net does not, which is a lower bound (sds).
GRADIENT = {"full": 2.27, "sds": 1.6}
HALF, SINGLE = PEAK, 67e12  # an H200's FLOP/s at most, in bfloat16 and in float32
USED = 0.40  # share of it that is assumed (ours)
# Numbers in the classifier's state_dict without its head, and the features that the head sees. Source: torchvision.
BODY = {"resnet50": 25.610e6 - 2.049e6, "regnety_16gf_swag": 83.713e6 - 3.025e6}
FEATURES = {"resnet50": 2048, "regnety_16gf_swag": 3024}
PICTURE = 3 * SIZE * SIZE  # bytes of a gallery picture at most: a PNG of noise is as large as its pixels

DRAWN_FROM = ("algorithm", "dataset", "hparams_seed", "trial_seed", "hparams")
COUNTED_FROM = ("algorithm", "dataset", "test_envs", "holdout_fraction", "steps", "checkpoint_freq")


def counts(args: dict) -> counting.Job:
    """What one job does, on its dataset's published sizes."""
    hparams = json.loads(_hparams(json.dumps({name: args.get(name) for name in DRAWN_FROM})))
    hparams["lr"] = None  # it decides no count, and the jobs of a search that share their counts are counted once
    return _counts(json.dumps({name: args.get(name) for name in COUNTED_FROM}), json.dumps(hparams))


@functools.cache
def _hparams(args: str) -> str:
    return json.dumps(hparams_of(json.loads(args)))


@functools.cache
def _counts(args: str, hparams: str) -> counting.Job:
    job = json.loads(args)
    return counting.count(job, json.loads(hparams), BENCHMARKS[job["dataset"]].images)


def is_priced(args: dict) -> bool:
    """Whether there is a price for the job. Rivals of DomainFusion but SAM have none, nor have vision transformers."""
    hparams = counts(args).hparams
    return "Classifier" in args["algorithm"] or (
        args["algorithm"] in MINIBATCHES and hparams.get("backbone") in FORWARD
    )


def hours(args: dict) -> float:
    """GPU-hours of one job. Only of a job that is priced."""
    job = counts(args)
    hparams = with_ld_preset(job.hparams)
    if "Classifier" in job.algorithm:
        return job.evaluated * _scores(job) / (USED * HALF) / 3600
    trained = job.steps * hparams["batch_size"] * job.domains * MINIBATCHES[job.algorithm]
    classifier = (trained * PASSES + job.evaluated) * FORWARD[hparams["backbone"]]
    diffusion = 0.0
    if job.algorithm == "DomainFusion":
        executed = int(hparams["denoising_steps"] * hparams["strength"])
        diffusion += job.kept * ENCODER + job.candidates * (2 * executed * UNET + DECODER)
        diffusion += job.ld_gradients * (ENCODER + UNET) * GRADIENT[hparams["ld_gradient"]]
    return (diffusion / (USED * HALF) + classifier / (USED * SINGLE)) / 3600


def _scores(job: counting.Job) -> float:
    """FLOP for one image. TextToImageClassifier's are an upper bound, because its pruning depends on the images."""
    classes = BENCHMARKS[job.dataset].classes
    if job.algorithm == "TextToImageClassifier":
        return ENCODER + classes * job.hparams["t2i_max_scores"] * UNET
    evaluations, seen, left = 0, 0, classes
    for timesteps, keep in job.hparams["dc_stages"]:
        evaluations += (timesteps - seen) * left
        seen, left = timesteps, min(left, keep)
    return ENCODER + evaluations * UNET


def disk(args: dict) -> float:
    """Bytes of one job's folder: model.pkl and the gallery's pictures. Only of a job that is priced."""
    job = counts(args)
    if "Classifier" in job.algorithm:
        return 0.0
    backbone = job.hparams["backbone"]
    model = 4 * (BODY[backbone] + BENCHMARKS[job.dataset].classes * (FEATURES[backbone] + 1))
    if job.algorithm != "DomainFusion":
        return model
    return model + job.hparams["gallery"] * job.domains * (job.rounds + 1) * PICTURE
