"""Published numbers for the same tables: training-domain validation, accuracy in percent.

DomainFusion, ERM and the two diffusion classifiers with ResNet-50, and the cost table, are from the supplement of
the paper (ECCV 2024); every other row is from the method's own paper.
"""

from dataclasses import dataclass

DATASETS = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet")

RESNET50 = "ResNet-50"
REGNETY = "RegNetY-16GF (SWAG)"

# method: accuracy per dataset in the order of DATASETS, None where the source gives no number
ACCURACY: dict[str, dict[str, tuple[float | None, ...]]] = {
    RESNET50: {
        "DomainFusion": (90.0, 79.2, 72.4, 51.1, 44.6),
        "ERM": (85.5, 77.5, 66.5, 46.1, 40.9),
        "SAM": (85.8, 79.4, 69.6, 43.3, 44.3),
        "SAGM": (86.6, 80.0, 70.1, 48.8, 45.0),
        "MIRO": (85.4, 79.0, 70.5, 50.4, 44.3),
        "SWAD": (88.1, 79.1, 70.6, 50.0, 46.5),
        "MIRO+SWAD": (88.4, 79.6, 72.4, 52.9, 47.0),
        "ERM++": (89.8, 78.0, 74.7, 51.2, 50.8),
        "FDS": (88.8, 79.8, 71.1, None, None),
        "FDS+SWAD": (90.5, 79.7, 73.5, None, None),
        "DiffusionClassifier": (47.0, 40.6, 26.8, 13.5, 10.8),
        "TextToImageClassifier": (23.8, 0.8, 15.5, 8.5, 0.3),
    },
    REGNETY: {
        "DomainFusion": (None, None, 83.4, None, None),
        "ERM": (89.6, 78.6, 71.9, 51.4, 48.5),
        "SWAD": (94.7, 79.7, 80.0, 57.9, 53.6),
        "MIRO": (97.4, 79.9, 80.4, 58.9, 53.8),
        "MIRO+SWAD": (97.5, 81.6, 84.2, 65.5, 60.8),
    },
}


@dataclass(frozen=True)
class PublishedCost:
    """The cost on DomainNet: days of one V100 to fine-tune the generator and to generate, and images generated."""

    method: str
    tuning_days: float
    generation_days: float
    images: int
    images_text: str  # the number of images in the paper's words


COSTS = (
    PublishedCost("DSI", 22.44, 7.94, 244_000, "244k"),
    PublishedCost("CDGA", 0.0, 161.11, 4_000_000, "over 4M"),
    PublishedCost("DomainFusion", 0.0, 2.19, 120_000, "120k"),
)


def backbone_of(hparams: dict) -> str:
    """The backbone whose published numbers a run is compared with: RegNetY if its hparams name one, else ResNet-50."""
    return REGNETY if "regnety" in str(hparams.get("backbone", "")) else RESNET50


def accuracy(backbone: str, method: str, dataset: str) -> float | None:
    """The published average over a dataset's environments in percent, None if there is none."""
    numbers = ACCURACY[backbone].get(method)
    return numbers[DATASETS.index(dataset)] if numbers is not None and dataset in DATASETS else None
