"""Rows of the table of hparams (`hparams`) for the methods that papers compare DomainFusion with."""

from .hparam import CLASSIFIER, NO_TIME, Hparam, number, one_of

# fmt: off
DRM = (
    Hparam(name="drm_weight", default=0.5, range=number(0, 1),
           meaning="share of the domains' classifiers in the loss, beside the shared one",
           source="Zhang et al. 2023, DRM", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="drm_predict", default="batch", range=one_of("batch", "weighted", "lowest"),
           meaning="which classifiers answer: for a whole batch the one of lowest mean entropy; for each image the "
                   "domains' mixture weighted by entropy; for each image the domain's of lowest entropy",
           source="Zhang et al. 2023, DRM", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="drm_gamma", default=1.0, search=(0.0, 0.5, 1.0, 5.0), range=number(0),
           meaning="γ of weighted: a domain's probabilities count by entropy^(-γ); 0: all alike",
           source="Zhang et al. 2023, DRM (their code's grid; default ours)", changes=(CLASSIFIER,), time=NO_TIME),
)

# fmt: on

#: Algorithm → its rows.
RIVALS = {
    "DRM": DRM,
}
