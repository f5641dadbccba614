"""`domainfusion data get` against a server on this machine that fails in the ways in which servers fail.

What must hold in every case: the dataset's folder is there whole, or not at all.
"""

import base64
import hashlib
import io
import json
import re
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.data import benchmarks, getting, sources
from domainbed_domainfusion.data.arrangement import ANIMALS, LOCATIONS
from domainbed_domainfusion.data.transfer import Patience, SourceFailed, transfer
from domainbed_domainfusion.errors import InputError

from .failing_server import Server

ENVIRONMENTS, CLASSES, IMAGES = ("art", "cartoon", "photo", "sketch"), ("dog", "horse"), 3
QUICK = Patience(timeout=0.3, attempts=2, wait=0.0)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def png(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pacs(above: str = "kfold/") -> dict[str, bytes]:
    """PACS in small, as it lies in an archive: path → bytes."""
    paths = [f"{above}{e}/{c}/{i}.png" for e in ENVIRONMENTS for c in CLASSES for i in range(IMAGES)]
    return {path: png(number) for number, path in enumerate(paths)}


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def known(monkeypatch, server):
    """The published sizes fit PACS in small, and its sources are /a.zip and /b.zip of the server."""
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", benchmarks.Benchmark("PACS", (6, 6, 6, 6), 2))
    two = tuple(sources.Source((server.address(path),)) for path in ("/a.zip", "/b.zip"))
    monkeypatch.setitem(sources.SOURCES, "PACS", two)
    server.files = {"/a.zip": zipped(pacs()), "/b.zip": zipped(pacs("else/where/"))}


def get(data, **given):
    return getting.get("PACS", data, patience=QUICK, **given)


def assert_whole(data: Path) -> None:
    """Every file of PACS in small with its bytes, and nothing beside it."""
    found = {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert found == pacs("PACS/")
    assert [path.name for path in data.iterdir()] == ["PACS"]


def assert_absent(data: Path) -> None:
    """Neither the dataset's folder nor unpacked files."""
    assert not (data / "PACS").exists() and not list(data.rglob("content"))


def test_the_first_source_that_works(known, server, tmp_path, capsys):
    assert cli.main(["data", "get", "PACS", "--data_dir", str(tmp_path / "new"), "--timeout", "5"]) == 0
    printed = capsys.readouterr().out
    assert f"PACS in {tmp_path / 'new' / 'PACS'}: 4 environments, 2 classes, 24 images" in printed
    assert "Nothing is wrong with it." in printed and [path for path, _ in server.asked] == ["/a.zip"]
    assert_whole(tmp_path / "new")


@pytest.mark.parametrize(
    "behaviour, sentence",
    [
        ("404", "a.zip: the server answers 404 Not Found."),
        ("html", "a.zip: the server sends a web page and no file; Google Drive does so if it is asked too often"),
        ("cut always", r"a.zip: nothing new came in 2 attempts \(the connection ended after [\d,]+ of [\d,]+ bytes\)"),
        ("no range, cut always", "a.zip: nothing new came in 2 attempts"),
        ("stalled", r"a.zip: nothing new came in 2 attempts \(.*timed out\); what has come is kept"),
    ],
)
def test_a_source_that_fails_gives_place_to_the_next(known, server, tmp_path, capsys, behaviour, sentence):
    server.behaviour["/a.zip"] = behaviour
    get(tmp_path)
    assert re.search(sentence, capsys.readouterr().err)
    assert_whole(tmp_path)


def test_a_cut_transfer_goes_on_where_it_was_cut(known, server, tmp_path):
    server.behaviour["/a.zip"] = "cut once"
    get(tmp_path)
    assert server.asked == [("/a.zip", ""), ("/a.zip", f"bytes={len(server.files['/a.zip']) // 2}-")]
    assert_whole(tmp_path)


def test_a_later_call_goes_on_with_what_an_earlier_one_left(known, server, tmp_path):
    server.behaviour = {"/a.zip": "cut always", "/b.zip": "404"}
    with pytest.raises(InputError, match=r"No source gave PACS: .*a.zip: nothing new.*b.zip: the server answers 404"):
        get(tmp_path)
    assert_absent(tmp_path)
    server.behaviour, server.asked = {}, []
    get(tmp_path)
    assert server.asked == [("/a.zip", f"bytes={len(server.files['/a.zip']) // 2}-")]
    assert_whole(tmp_path)


def test_a_file_that_has_changed_meanwhile_is_sent_anew(known, server, tmp_path):
    server.behaviour = {"/a.zip": "cut always", "/b.zip": "404"}
    right = server.files["/a.zip"]
    server.files["/a.zip"] = bytes(len(right))
    with pytest.raises(InputError):
        get(tmp_path)
    server.behaviour, server.files["/a.zip"], server.asked = {}, right, []
    get(tmp_path)
    assert [path for path, _ in server.asked] == ["/a.zip"]
    assert_whole(tmp_path)


def test_a_server_without_ranges_sends_all_of_it_again(known, server, tmp_path):
    server.behaviour["/a.zip"] = "no range"
    get(tmp_path)
    assert [path for path, _ in server.asked] == ["/a.zip", "/a.zip"]
    assert_whole(tmp_path)


def test_a_partial_file_that_is_too_long_is_dropped(known, server, tmp_path):
    path = tmp_path / "x.zip"
    path.with_name("x.zip.partial").write_bytes(server.files["/a.zip"] + b"more")
    transfer(server.address("/a.zip"), path, QUICK)
    assert path.read_bytes() == server.files["/a.zip"] and not path.with_name("x.zip.partial").exists()


@pytest.mark.parametrize(
    "content, sentence",
    [
        (lambda: zipped(pacs())[:-300], "what came is neither a whole zip nor a whole tar archive."),
        (lambda: tarred(pacs())[:-300], r"the archive cannot be unpacked whole \(.*\): it is cut short or damaged."),
        (lambda: b"\n<!DOCTYPE html><html>quota</html>", "what came is a web page and no archive."),
        (lambda: zipped({**pacs(), "../../evil.png": png(1)}), r"leads outside its folder, or a link \(../../evil.png"),
        (lambda: tarred({**pacs(), "../../evil.png": png(1)}), r"leads outside its folder, or a link \(../../evil.png"),
        (lambda: zipped({**pacs(), "/tmp/evil.png": png(1)}), r"leads outside its folder"),
        (
            lambda: zipped({"kfold/readme.txt": b"x"}),
            "its content is not the benchmark's: no folder has 4 environments",
        ),
        (
            lambda: zipped(dict(list(pacs().items())[:-1])),
            r"its content is not the benchmark's: sketch has 5 images, but the published dataset has 6",
        ),
        (
            lambda: zipped({**pacs(), "kfold/art/dog/0.png": png(0)[:-40]}),
            "its content is not the benchmark's: 1 image cannot be read whole; art/dog/0.png.",
        ),
    ],
)
def test_an_archive_that_is_not_the_benchmark_is_not_put_in_place(known, server, tmp_path, content, sentence):
    server.files = {"/a.zip": content()}
    data = tmp_path / "deep" / "data"
    with pytest.raises(InputError, match=sentence):
        get(data)
    assert_absent(data)
    assert not list(tmp_path.rglob("evil.png")) and not list(data.rglob("*.zip*"))  # what is of no use is deleted
    server.files["/b.zip"] = zipped(pacs())
    get(data)
    assert_whole(data)


def test_duplicates_that_the_published_dataset_may_have_are_reported_only(known, server, tmp_path):
    twice = {**pacs(), "kfold/art/horse/0.png": png(0)}
    server.files = {"/a.zip": zipped(twice)}
    assert [finding.kind for finding in get(tmp_path).findings] == ["duplicates-classes"]
    assert (tmp_path / "PACS").is_dir()


def test_damage_inside_a_zip_is_found_by_its_crc(known, server, tmp_path):
    content = bytearray(server.files["/a.zip"])
    content[content.index(png(5)) + 60] ^= 1
    server.files = {"/a.zip": bytes(content)}
    with pytest.raises(InputError, match=r"cannot be unpacked whole \(Bad CRC-32 for file 'kfold/art/horse/2.png'\)"):
        get(tmp_path)
    assert_absent(tmp_path)


def test_a_checksum_of_the_user(known, server, tmp_path):
    right = hashlib.sha256(server.files["/b.zip"]).hexdigest()
    with pytest.raises(
        InputError, match=f"/b.zip: the sha256 of what came is {right} and not {'0' * 64}; it was delet"
    ):
        get(tmp_path, source=server.address("/b.zip"), sha256="0" * 64)
    assert_absent(tmp_path)
    get(tmp_path, source=server.address("/b.zip"), sha256=right.upper())
    assert_whole(tmp_path)


@pytest.mark.parametrize("header, form", [("x-goog-hash", "crc32c=AAAAAA==,md5={}"), ("Content-MD5", "{}")])
def test_a_checksum_of_the_server(known, server, tmp_path, header, form):
    md5 = base64.b64encode(hashlib.md5(server.files["/a.zip"]).digest()).decode()
    server.headers = {header: form.format(md5)}
    transfer(server.address("/a.zip"), tmp_path / "a", QUICK)
    with pytest.raises(SourceFailed, match="b.zip: the md5 of what came is"):
        transfer(server.address("/b.zip"), tmp_path / "b", QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: tarred(files, "w")], ids=["zip", "tar.gz", "tar"])
def test_a_file_of_the_user_is_read_and_left(known, server, tmp_path, pack):
    archive = tmp_path / "download (1)"
    archive.write_bytes(pack({**pacs("a/b/"), "a/b/__MACOSX/b/._0.png": b"x"}))
    get(tmp_path / "data", source=str(archive))
    assert_whole(tmp_path / "data")
    assert archive.exists() and server.asked == []


def test_a_folder_that_exists_is_left_as_it_is(known, server, tmp_path):
    (tmp_path / "PACS").mkdir()
    with pytest.raises(InputError, match="PACS exists already and is left as it is: check it, or move it away"):
        get(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "PACS"] and server.asked == []


def test_a_folder_that_appears_meanwhile_is_left_as_it_is(known, server, tmp_path, monkeypatch):
    original = getting.check

    def check(*arguments):
        (tmp_path / "PACS").mkdir()
        return original(*arguments)

    monkeypatch.setattr(getting, "check", check)
    with pytest.raises(InputError, match="exists already"):
        get(tmp_path)
    assert list((tmp_path / "PACS").iterdir()) == []


def test_two_at_once(known, server, tmp_path):
    server.behaviour["/a.zip"] = "stalled"
    patience = Patience(timeout=10, wait=0.0)
    first = threading.Thread(target=lambda: getting.get("PACS", tmp_path, patience=patience))
    first.start()
    while not server.asked:
        time.sleep(0.01)
    with pytest.raises(InputError, match="Another process is getting PACS into"):
        get(tmp_path)
    server.behaviour = {}
    server.released.set()
    first.join()
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "name, given, sentence",
    [
        ("PACSS", {}, "There is no benchmark called 'PACSS': did you mean 'PACS'"),
        ("PACS", {"sha256": "0"}, "--sha256 is the checksum of one archive: name it with --source."),
        ("PACS", {"source": "nowhere.zip"}, "There is no file nowhere.zip: --source is an http address, or a zip or"),
    ],
)
def test_bad_arguments(name, given, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        getting.get(name, tmp_path, patience=QUICK, **given)


def test_domainnets_lists_leave_the_duplicates_out(server, tmp_path, monkeypatch):
    """One archive for each domain, and lists that do not name one image of clipart."""
    domains = [address.rsplit("/", 1)[1].removesuffix(".zip") for address in sources.SOURCES["DomainNet"][0].archives]
    files, lists = {}, {}
    for number, domain in enumerate(domains):
        inside = {f"{domain}/{c}/{i} x.png": png(100 * number + 10 * j + i) for j, c in enumerate("ab") for i in (1, 2)}
        files[domain] = inside
        server.files[f"/{domain}.zip"] = zipped(inside)
        for part in ("train", "test"):
            chosen = [path for path in inside if (f"{1 if part == 'train' else 2} x" in path)]
            lists[f"/{domain}_{part}.txt"] = "".join(f"{path} {label}\n" for label, path in enumerate(chosen))
    lists["/clipart_test.txt"] = "clipart/a/2 x.png 0\n"
    server.files.update({path: text.encode() for path, text in lists.items()})
    published = benchmarks.Benchmark("domain_net", (3, 4, 4, 4, 4, 4), 2)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "DomainNet", published)
    source = sources.Source(
        tuple(server.address(f"/{domain}.zip") for domain in domains),
        tuple(map(server.address, lists)),
        sources.SOURCES["DomainNet"][0].arrange,
    )
    monkeypatch.setitem(sources.SOURCES, "DomainNet", (source,))
    getting.get("DomainNet", tmp_path, patience=QUICK)
    root = tmp_path / "domain_net"
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.png")}
    assert found == {path for inside in files.values() for path in inside} - {"clipart/b/2 x.png"}


def test_terra_incognita_is_sorted_from_the_camera_traps(server, tmp_path, monkeypatch):
    """Each image of the four locations in the class of its animals; other locations and animals are left out."""
    kinds = [*ANIMALS, "car"]
    images = [(location, kind) for location in (*LOCATIONS, "7") for kind in range(len(kinds))]
    content = {
        "categories": [{"id": 10 + i, "name": kind} for i, kind in enumerate(kinds)],
        "images": [
            {"id": f"i{n}", "file_name": f"{n}.png", "location": int(place)} for n, (place, _) in enumerate(images)
        ],
        "annotations": [{"image_id": f"i{n}", "category_id": 10 + kind} for n, (_, kind) in enumerate(images)],
    }
    content["annotations"] += [{"image_id": "i0", "category_id": 10 + 1}]  # a bird and a bobcat
    halves = {"cis_val": content, "train": {**content, "images": []}}
    server.files["/notes"] = tarred(
        {f"eccv_18_annotation_files/{name}.json": json.dumps(half).encode() for name, half in halves.items()}
    )
    server.files["/images"] = tarred({f"eccv_18_all_images_sm/{n}.png": png(n) for n in range(len(images))})
    published = benchmarks.Benchmark("terra_incognita", (10, 11, 10, 10), 10)  # L100, L38, …: the order of names
    monkeypatch.setitem(benchmarks.BENCHMARKS, "TerraIncognita", published)
    archives = (server.address("/notes"), server.address("/images"))
    arrange = sources.SOURCES["TerraIncognita"][0].arrange
    monkeypatch.setitem(sources.SOURCES, "TerraIncognita", (sources.Source(archives, arrange=arrange),))
    check = getting.get("TerraIncognita", tmp_path, patience=QUICK)
    expected = {(f"location_{place}", kinds[kind], n) for n, (place, kind) in enumerate(images)}
    expected = {(place, kind, n) for place, kind, n in expected if place != "location_7" and kind != "car"}
    expected |= {("location_38", "bobcat", 0)}
    assert {(place, kind, int(path.stem)) for place, kind, path in check.layout.images} == expected
    assert check.layout.root == tmp_path / "terra_incognita"


def test_the_sources_that_are_known():
    """Each benchmark has one; every address is one that the transfer takes."""
    assert sources.SOURCES.keys() == benchmarks.BENCHMARKS.keys()
    for each in (source for several in sources.SOURCES.values() for source in several):
        assert all(re.fullmatch(r"https?://[^ ]+", address) for address in (*each.archives, *each.lists))
