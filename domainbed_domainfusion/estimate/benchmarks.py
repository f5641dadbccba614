"""The published sizes of DomainBed's five benchmarks, for datasets that are not on this machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """An image-folder dataset of the host."""

    folder: str  # under --data_dir
    images: tuple[int, ...]  # per environment, in the order of the host's ENVIRONMENTS
    classes: int
    picture: tuple[int, int] = (500, 375)  # usual width and height in pixels; the default is ours


BENCHMARKS = {
    "PACS": Benchmark("PACS", (2048, 2344, 1670, 3929), 7, (227, 227)),  # A C P S
    "VLCS": Benchmark("VLCS", (1415, 2656, 3282, 3376), 5),  # C L S V
    "OfficeHome": Benchmark("office_home", (2427, 4365, 4439, 4357), 65),  # A C P R
    "TerraIncognita": Benchmark("terra_incognita", (4741, 9736, 3970, 5883), 10, (1024, 747)),  # L100 L38 L43 L46
    "DomainNet": Benchmark("domain_net", (48129, 51605, 72266, 172500, 172947, 69128), 345),  # C I P Q R S
}
