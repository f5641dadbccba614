"""Rows of the table of hparams (`hparams`) for the methods that papers compare DomainFusion with."""

import dataclasses

from .classifier_hparams import BACKBONE
from .hparam import (
    CANDIDATES,
    CLASSIFIER,
    DESCRIPTIONS,
    FLAG,
    NO_TIME,
    ROUNDS,
    STAGE_NUMBERS,
    TIME,
    Hparam,
    integer,
    number,
    one_of,
)

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

HGP = (
    Hparam(name="hgp_alpha", default=1e-4, search=(1e-5, 1e-4, 1e-3), range=number(0),
           meaning="α, weight of the distance between the domains' Hessian-gradient products",
           source="Hemati et al. 2023, HGP (their code; search: powers of ten in its range)", changes=(CLASSIFIER,),
           time=NO_TIME),
    Hparam(name="hgp_beta", default=0.005, search=(0.001, 0.01, 0.1), range=number(0),
           meaning="β, weight of the distance between the domains' gradients",
           source="Hemati et al. 2023, HGP (their code; search: powers of ten in its range)", changes=(CLASSIFIER,),
           time=NO_TIME),
)

HUTCHINSON = (
    Hparam(name="hutchinson_alpha", default=1e-3, search=(10.0, 100.0, 1000.0, 10000.0), range=number(0),
           meaning="α, weight of the distance between the diagonals of the domains' Hessians",
           source="Hemati et al. 2023, HGP (their code; search: powers of ten in its range)", changes=(CLASSIFIER,),
           time=NO_TIME),
    Hparam(name="hutchinson_beta", default=0.005, search=(1e2, 1e3, 1e4, 1e5, 1e6), range=number(0),
           meaning="β, weight of the distance between the domains' gradients",
           source="Hemati et al. 2023, HGP (their code; search: powers of ten in its range)", changes=(CLASSIFIER,),
           time=NO_TIME),
    Hparam(name="hutchinson_probes", default=300, range=integer(1),
           meaning="probes of the estimate of a diagonal; memory and time of the classifier's part grow with it",
           source="Hemati et al. 2023, HGP (their code)", changes=(CLASSIFIER,), time=TIME),
)

ADVSTYLE = (
    Hparam(name="advstyle_stages", default="123", search=("123", "1234"), range=STAGE_NUMBERS,
           meaning="after which stages of the backbone styles move; 0 is the end of a ResNet's stem",
           source="Zhang et al. 2023, AdvStyle (default and search ours)", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="advstyle_weight", default=1.0, search=(0.1, 0.5, 1.0, 5.0), range=number(0),
           meaning="factor of the reversed gradient by which the learned spreads of styles rise",
           source="Zhang et al. 2023, AdvStyle (search ours)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="advstyle_probability", default=2 / 3, range=number(0, 1),
           meaning="share of the passes in which styles move: half by learned spreads, half by those of the batch",
           source="Zhang et al. 2023, AdvStyle", changes=(CLASSIFIER,), time=NO_TIME),
)

ADANPC = (
    Hparam(name="adanpc_queue", default=3500, search=(1000, 2000, 3500, 5000), range=integer(1),
           meaning="past features of training images that vote in training",
           source="Zhang et al. 2023, AdaNPC (their code; search: numbers in its range)", changes=(CLASSIFIER,),
           time=NO_TIME),
    Hparam(name="adanpc_train_neighbours", default=150, search=(25, 50, 150, 500), range=integer(1),
           meaning="nearest of them that vote; all where there are fewer",
           source="Zhang et al. 2023, AdaNPC (their code; search: numbers in its range)", changes=(CLASSIFIER,),
           time=NO_TIME),
    Hparam(name="adanpc_neighbours", default=100, search=(1, 5, 10, 25, 50, 75, 100, 150, 200), range=integer(1),
           meaning="nearest features of the memory that vote in predictions",
           source="Zhang et al. 2023, AdaNPC (their code)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="adanpc_temperature", default=0.1, search=(0.01, 0.05, 0.1, 0.25, 0.5), range=number(0, open_low=True),
           meaning="temperature of the votes in predictions",
           source="Zhang et al. 2023, AdaNPC (their code)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="adanpc_beta", default=1.1, range=number(0),
           meaning="probability from which an evaluated image joins the memory until the evaluation of its split ends; "
                   "above 1: none does",
           source="Zhang et al. 2023, AdaNPC (default ours; their grid: 0, 0.25, 0.75, 1.1)", changes=(CLASSIFIER,),
           time=NO_TIME),
)

ITTA = (
    Hparam(name="itta_stages", default="1234", range=STAGE_NUMBERS,
           meaning="after which stages of the backbone a block adapts at test; styles are mixed after the first or the "
                   "second of them",
           source="Chen et al. 2023", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="itta_test_steps", default=1, range=integer(0),
           meaning="steps of the blocks on each evaluated batch; 0: no adaptation",
           source="Chen et al. 2023", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="itta_test_weight", default=1e-6, range=number(0),
           meaning="factor of the consistency loss at test; the authors take 0.1 on DomainNet",
           source="Chen et al. 2023 (their code)", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="itta_reset", default="evaluation", range=one_of("evaluation", "batch"),
           meaning="when the blocks begin anew: with each split that is evaluated, or with each batch",
           source="ours (Chen et al. 2023: once for each test domain)", changes=(CLASSIFIER,), time=NO_TIME),
)

#: With a default of its own for the backbone, which must be a Vision Transformer.
PEGO = (
    dataclasses.replace(BACKBONE[0], default="vit_base_patch16_clip_224.openai", pocket="tiny_vit"),
    Hparam(name="pego_weight", default=1e-3, range=number(0),
           meaning="λ, weight of the pairs' products with the frozen weights and with each other",
           source="Hu et al. 2024", changes=(CLASSIFIER,), time=NO_TIME),
    Hparam(name="pego_pairs", default=4, range=integer(0),
           meaning="N, LoRA pairs beside each query and each value; the authors take 2 on PACS; 0: the classifier "
                   "alone is trained",
           source="Hu et al. 2024", changes=(CLASSIFIER,), time=TIME),
    Hparam(name="pego_rank", default=4, range=integer(1),
           meaning="rank of a pair",
           source="Hu et al. 2024", changes=(CLASSIFIER,), time=TIME),
)

#: Beside rows of DomainFusion's; see `hparams.CDGA`.
CDGA_GUIDES = (
    Hparam(name="cdga_descriptions", default=None, range=DESCRIPTIONS,
           meaning="a text for each domain's name, which follows the class in prompts; null: ours for PACS, "
                   "OfficeHome, DomainNet and DigitStyles",
           source="Hemati et al. 2023, CDGA (texts ours)", changes=(CANDIDATES,), time=NO_TIME, recorded_as="prompt"),
    Hparam(name="cdga_starred", default=False, range=FLAG,
           meaning="true: CDGA*, the test domain's description guides generation too",
           source="Hemati et al. 2023, CDGA", changes=(ROUNDS, CANDIDATES), time=TIME, recorded_as="prompt"),
)

# fmt: on

#: Algorithm → its rows.
RIVALS = {
    "DRM": DRM,
    "HGP": HGP,
    "Hutchinson": HUTCHINSON,
    "AdvStyle": ADVSTYLE,
    "AdaNPC": ADANPC,
    "ITTA": ITTA,
    "PEGO": PEGO,
}
