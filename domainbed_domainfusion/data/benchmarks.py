"""DomainBed's five benchmarks and Spawrious: their published sizes, and where they are known to be had."""

from dataclasses import dataclass

#: A comment by users of DomainBed who share their copies, after its own links had failed.
SHARED_COPIES = "https://github.com/facebookresearch/DomainBed/issues/165"


@dataclass(frozen=True)
class Benchmark:
    """An image-folder dataset of the host."""

    folder: str  # under --data_dir
    images: tuple[int, ...]  # per environment, in the order of the host's ENVIRONMENTS
    classes: int
    picture: tuple[int, int] = (500, 375)  # usual width and height in pixels; the default is ours
    sources: tuple[str, ...] = ()  # beside DomainBed's own scripts.download
    groups: tuple[str, ...] | None = None  # folders that hold the environments, if `folder` itself does not


BENCHMARKS = {
    "PACS": Benchmark(  # A C P S
        "PACS",
        (2048, 2344, 1670, 3929),
        7,
        (227, 227),
        ("https://github.com/MachineLearning2020/Homework3-PACS", SHARED_COPIES),
    ),
    "VLCS": Benchmark("VLCS", (1415, 2656, 3282, 3376), 5, sources=(SHARED_COPIES,)),  # C L S V
    "OfficeHome": Benchmark(  # A C P R
        "office_home",
        (2427, 4365, 4439, 4357),
        65,
        sources=("https://www.hemanthdv.org/officeHomeDataset.html", SHARED_COPIES),
    ),
    "TerraIncognita": Benchmark(  # L100 L38 L43 L46
        "terra_incognita",
        (4741, 9736, 3970, 5883),
        10,
        (1024, 747),
        ("https://lila.science/datasets/caltech-camera-traps",),
    ),
    "DomainNet": Benchmark(  # C I P Q R S
        "domain_net",
        (48129, 51605, 72266, 172500, 172947, 69128),
        345,
        sources=("http://ai.bu.edu/M3SDA/",),
    ),
}

SPAWRIOUS_SPLITS = ("0", "1")
SPAWRIOUS_LOCATIONS = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
#: The folders that DomainBed makes all of its Spawrious datasets of: split/location/class. An environment of theirs has
#: images of several, so the check takes each split/location for one. 3,168 images in each class, as DomainBed counts.
SPAWRIOUS = Benchmark(
    ".",
    (4 * 3168,) * 12,
    4,
    (224, 224),
    ("https://www.dropbox.com/s/e40j553480h3f3s/spawrious224.tar.gz?dl=1",),
    groups=SPAWRIOUS_SPLITS,
)
