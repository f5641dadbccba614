"""Rows of the table of hparams (`hparams`) for the diffusion model as a classifier, beside the model's own."""

from .hparam import (
    SCORES,
    SPEED,
    STAGES,
    TIME,
    Hparam,
    integer,
    number,
)

# fmt: off
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
