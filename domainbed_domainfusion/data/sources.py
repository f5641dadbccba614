"""Where the benchmarks' archives were seen. None is ours, and any may be gone: `domainfusion data get` tries them all.

Each address stands in public code or documentation: DomainBed's scripts/download.py, the issue `SHARED_COPIES`, the
README of jindongwang/transferlearning (Azure), a repository's own archive on GitHub, the page of DomainNet. Nobody
publishes checksums beside them; what a source sends is judged by the benchmark's published sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .arrangement import keep_listed, sort_camera_traps

_DOMAINNET = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_CAMERA_TRAPS = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
_AZURE = "https://wjdcloud.blob.core.windows.net/dataset"


@dataclass(frozen=True)
class Source:
    """Archives that make a benchmark together."""

    archives: tuple[str, ...]  # http(s) addresses, or one file on this machine
    lists: tuple[str, ...] = ()  # addresses of text files that `arrange` reads
    arrange: Callable[[Path, Sequence[Path]], None] | None = None  # of the unpacked folder, and the lists' files
    sha256: str = ""  # of a single archive


def _drive(file: str) -> Source:
    """A file that is shared on Google Drive."""
    return Source((f"https://drive.usercontent.google.com/download?id={file}&export=download&confirm=t",))


def _of_domain(archive: str) -> tuple[str, str]:
    """The lists of DomainNet's cleaned version for the domain of that archive."""
    domain = archive.rsplit("/", 1)[-1]
    return f"{_DOMAINNET}/domainnet/txt/{domain}_train.txt", f"{_DOMAINNET}/domainnet/txt/{domain}_test.txt"


_DOMAINS = ("groundtruth/clipart", "infograph", "groundtruth/painting", "quickdraw", "real", "sketch")

#: In the order in which they are tried.
SOURCES: dict[str, tuple[Source, ...]] = {
    "PACS": (
        Source(("https://github.com/MachineLearning2020/Homework3-PACS/archive/refs/heads/master.zip",)),
        Source((f"{_AZURE}/PACS.zip",)),
        _drive("1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd"),  # DomainBed's
        _drive("1WWi9tuUNFmUiw7Eirq_JT_hxYZv3J-Vv"),  # SHARED_COPIES
    ),
    "VLCS": (
        _drive("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8"),  # DomainBed's
        _drive("1yDuLrJdPSvMbTmpq-7XmwG0HnJengD-T"),  # SHARED_COPIES
        Source((f"{_AZURE}/VLCS/VLCS.zip",)),
    ),
    "OfficeHome": (
        Source((f"{_AZURE}/OfficeHome.zip",)),
        _drive("1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC"),  # DomainBed's
        _drive("1USXqK4nCvOAR5Ty4iwKcuCOrRJoRuDyU"),  # SHARED_COPIES
    ),
    "TerraIncognita": (
        Source(
            (f"{_CAMERA_TRAPS}/eccv_18_annotations.tar.gz", f"{_CAMERA_TRAPS}/eccv_18_all_images_sm.tar.gz"),
            arrange=sort_camera_traps,
        ),
    ),
    "DomainNet": (
        Source(
            tuple(f"{_DOMAINNET}/{domain}.zip" for domain in _DOMAINS),
            tuple(address for domain in _DOMAINS for address in _of_domain(domain)),
            keep_listed,
        ),
    ),
}
