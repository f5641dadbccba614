"""Rows of the table of hparams (`hparams`) for the methods that use the diffusion model at test time.

Beside these each has the diffusion model's own rows, `domainfusion_hparams.LDM`.
"""

from .hparam import (
    ANSWERS,
    NO_TIME,
    RISING_STEPS,
    SPEED,
    TIME,
    Hparam,
    integer,
    number,
    one_of,
)

# fmt: off
#: For all of them.
AT_TEST_TIME = (
    Hparam(name="test_time_when", default="every", range=one_of("every", "last"),
           meaning="which evaluations of a training run ask the diffusion model: every one, or those after the last "
                   "step; the others are then ERM's",
           source="ours", changes=(ANSWERS,), time=TIME),
    Hparam(name="test_time_batch", default=16, pocket=128, range=integer(1),
           meaning="images, or draws of noise, in the diffusion model at once (memory only)",
           source="ours", changes=(SPEED,), time=TIME),
)

#: What each may keep from one evaluation to the next, where that does not depend on the classifier.
CACHE = (
    Hparam(name="test_time_cache_gb", default=4.0, range=number(0),
           meaning="GiB of memory for what the diffusion model has made of each image; when it is full, later images "
                   "are made anew in each evaluation",
           source="ours", changes=(SPEED,), time=TIME),
)

DSI = (
    Hparam(name="dsi_threshold", default=0.9, range=number(0, 1),
           meaning="an answer whose largest class probability is above it is taken as it is; 0: always, which is ERM",
           source="ours (Yu et al. 2023, DSI, have 0 and 0.1 in their code)", changes=(ANSWERS,), time=TIME),
    Hparam(name="dsi_steps", default=50, pocket=10, range=integer(1, 1000),
           meaning="steps of the whole DDIM schedule",
           source="ours (Yu et al. 2023, DSI: 250)", changes=(ANSWERS,), time=TIME),
    Hparam(name="dsi_starts", default=[10, 20, 30, 40], pocket=[2, 4, 6, 8], range=RISING_STEPS,
           meaning="so many of these steps an image is noised and denoised, one after the other until the answer is "
                   "sure",
           source="ours (Yu et al. 2023, DSI: in an example 200 of 250)", changes=(ANSWERS,), time=TIME),
    Hparam(name="dsi_finetune_steps", default=1000, pocket=0, range=integer(0),
           meaning="steps of fine-tuning the diffusion model on each training domain; 0: one view of each image, by "
                   "the model as it is",
           source="Yu et al. 2023, DSI (number ours)", changes=(ANSWERS,), time=TIME),
    Hparam(name="dsi_finetune_lr", default=1e-4, range=number(0, open_low=True),
           meaning="AdamW's learning rate in it",
           source="Yu et al. 2023, DSI (their code)", changes=(ANSWERS,), time=NO_TIME),
    Hparam(name="dsi_finetune_batch", default=48, range=integer(1),
           meaning="images in a step of it; divided if the memory does not suffice",
           source="Yu et al. 2023, DSI (their code)", changes=(ANSWERS,), time=TIME),
)

SDA = (
    Hparam(name="sda_weight", default=1.0, range=number(0),
           meaning="weight of the fine-tuned copy's logits on the projected image, beside the classifier's on the "
                   "image; 0: ERM",
           source="Guo et al. 2025, SDA", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_steps", default=100, pocket=20, range=integer(1, 1000),
           meaning="steps of the whole chain of the projection",
           source="Guo et al. 2025, SDA (their code)", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_noised", default=50, pocket=10, range=integer(1, 1000),
           meaning="so many of these steps an image is noised and denoised",
           source="Guo et al. 2025, SDA (their code)", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_scale", default=6.0, range=number(0),
           meaning="w, weight of the gradient that keeps an image's coarse part",
           source="Guo et al. 2025, SDA (their code; there on pixels)", changes=(ANSWERS,), time=NO_TIME),
    Hparam(name="sda_low_pass", default=4, range=integer(1),
           meaning="D, the factor of the low-pass filter, in latents",
           source="Guo et al. 2025, SDA (their code; there in pixels)", changes=(ANSWERS,), time=NO_TIME),
    Hparam(name="sda_images", default=50, pocket=10, range=integer(1),
           meaning="images that are generated for each class, once in a run",
           source="Guo et al. 2025, SDA", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_generation_steps", default=50, pocket=10, range=integer(1, 1000),
           meaning="DDIM steps of their generation",
           source="ours", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_guidance", default=7.5, range=number(0),
           meaning="classifier-free guidance of their generation; 1 and less: none",
           source="ours (Guo et al. 2025, SDA: none, with another model)", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_epochs", default=15, range=integer(0),
           meaning="epochs of fine-tuning the copy of the classifier on them, at each checkpoint",
           source="Guo et al. 2025, SDA", changes=(ANSWERS,), time=TIME),
    Hparam(name="sda_lr", default=5e-4, range=number(0, open_low=True),
           meaning="SGD's learning rate in it; a tenth from the epochs 10, 20 and 25 on",
           source="Guo et al. 2025, SDA (their code, ResNet-50)", changes=(ANSWERS,), time=NO_TIME),
    Hparam(name="sda_batch", default=64, range=integer(1),
           meaning="images in a step of it",
           source="Guo et al. 2025, SDA (their code)", changes=(ANSWERS,), time=TIME),
)

DIFFUSION_TTA = (
    Hparam(name="tta_steps", default=5, pocket=3, range=integer(0),
           meaning="steps in which the classifier is adapted to an image; 0: ERM",
           source="Prabhudesai et al. 2023, Diffusion-TTA (their code)", changes=(ANSWERS,), time=TIME),
    Hparam(name="tta_draws", default=192, pocket=8, range=integer(1),
           meaning="draws of timestep and noise in a step",
           source="Prabhudesai et al. 2023, Diffusion-TTA (their code: 12 times 16)", changes=(ANSWERS,), time=TIME),
    Hparam(name="tta_optimizer", default="sgd", range=one_of("sgd", "adam"),
           meaning="SGD with momentum 0.9, or Adam; new for each image",
           source="Prabhudesai et al. 2023, Diffusion-TTA (their code: sgd with Stable Diffusion)",
           changes=(ANSWERS,), time=TIME),
    Hparam(name="tta_lr", default=5e-3, range=number(0),
           meaning="its learning rate",
           source="Prabhudesai et al. 2023, Diffusion-TTA (their code; 1e-5 with Adam)", changes=(ANSWERS,),
           time=NO_TIME),
    Hparam(name="tta_parameters", default="all", range=one_of("all", "normalisation", "classifier"),
           meaning="what moves: all weights, scales and shifts of normalisation layers, or the last linear layer",
           source="Prabhudesai et al. 2023, Diffusion-TTA (the others ours)", changes=(ANSWERS,), time=TIME),
)

# fmt: on

#: Algorithm → its rows beside the diffusion model's.
TEST_TIME = {
    "DSI": AT_TEST_TIME + CACHE + DSI,
    "SDA": AT_TEST_TIME + CACHE + SDA,
    "DiffusionTTA": AT_TEST_TIME + DIFFUSION_TTA,
}

#: What each changes in the defaults of the diffusion model's rows.
LDM_DEFAULTS = {
    "DSI": {"image_size": 256},
    "SDA": {"image_size": 256},
    "DiffusionTTA": {"image_size": 512},
}

#: The diffusion model's rows that each does without.
LDM_UNUSED = {
    "DSI": ("prompt_template", "class_names"),
}
