"""Every image is decoded once, by one process; later jobs look at little and still see what has changed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import checks, readable_images

from .test_checks import cache, image_folder  # noqa: F401 - an own cache folder for every test

#: Checks the folder given as an argument; decoding an image takes a while and adds a line to a log.
SLOW_CHECK = """
import sys, time
from domainbed_domainfusion.hosting import checks, readable_images
decode = readable_images.is_broken
def slow(path):
    with open(sys.argv[2], "a") as log:
        log.write(path + "\\n")
    time.sleep(float(sys.argv[3]))
    return decode(path)
readable_images.is_broken = slow
checks.check_image_folder(sys.argv[1], ["A", "P"])
"""


def start(root: str, log: Path, seconds: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", SLOW_CHECK, root, str(log), str(seconds)], env=environment)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The images that were decoded."""
    paths = []
    decode = readable_images.is_broken
    monkeypatch.setattr(readable_images, "is_broken", lambda path: paths.append(path) or decode(path))
    return paths


@pytest.fixture
def data(tmp_path, decoded) -> Path:
    """A folder of 12 images that has been checked."""
    checks.check_image_folder(image_folder(tmp_path / "data"), ["A", "P"])
    assert len(decoded) == 12
    decoded.clear()
    time.sleep(0.05)  # file systems keep times in ticks of up to 10 ms
    return tmp_path / "data"


def test_a_checked_folder_costs_a_look_at_the_sample(data, decoded, monkeypatch):
    looked_at = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **kwargs: looked_at.append(path) or stat(path, *args, **kwargs))
    monkeypatch.setattr(readable_images, "SAMPLE", 2)
    checks.check_image_folder(str(data), ["A", "P"])
    assert len([path for path in looked_at if str(path).endswith(".jpg")]) == 2 and decoded == []


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_another_listing_is_always_seen(data, decoded, monkeypatch, change):
    monkeypatch.setattr(readable_images, "SAMPLE", 0)
    image = data / "photo" / "dog" / "1.jpg"
    if change == "add":
        Image.new("RGB", (9, 9)).save(data / "photo" / "dog" / "new.png")
    elif change == "remove":
        image.unlink()
    else:
        image.rename(data / "photo" / "dog" / "other.jpg")
    checks.check_image_folder(str(data), ["A", "P"])
    assert len(decoded) == {"add": 13, "remove": 11, "rename": 12}[change]


def test_an_image_overwritten_in_place_is_seen_in_the_sample(data):
    image = data / "photo" / "dog" / "1.jpg"
    times = os.stat(image).st_atime_ns, os.stat(image).st_mtime_ns
    image.write_bytes(b"half a copy")
    os.utime(image, ns=times)  # as copying tools do
    with pytest.raises(InputError, match=r"1 of 12 images in .* cannot be read, the first is .*dog/1.jpg"):
        checks.check_image_folder(str(data), ["A", "P"])


def test_the_sample_is_another_in_each_job(data, monkeypatch, as_script):
    """One image of 12 is looked at in each job. 200 jobs miss the overwritten one with probability 3e-8."""
    monkeypatch.setattr(readable_images, "SAMPLE", 1)
    (data / "photo" / "dog" / "1.jpg").write_bytes(b"half a copy")
    with pytest.raises(InputError, match="1 of 12 images"):
        for job in range(200):
            as_script("train", "--output_dir", f"job{job}")
            checks.check_image_folder(str(data), ["A", "P"])


def test_a_broken_image_is_remembered_until_it_is_mended(tmp_path, decoded):
    root = image_folder(tmp_path / "data")
    bad = tmp_path / "data" / "photo" / "dog" / "1.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"<html>404</html>")
    sentences = []
    for _ in range(2):
        with pytest.raises(InputError) as error:
            checks.check_image_folder(root, ["A", "P"])
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1] and len(decoded) == 12 + 1  # the second job looks at the broken one alone
    bad.write_bytes(good)
    decoded.clear()
    checks.check_image_folder(root, ["A", "P"])
    assert len(set(decoded)) == 12
    decoded.clear()
    checks.check_image_folder(root, ["A", "P"])
    assert decoded == []


def test_jobs_that_start_together_decode_once(tmp_path):
    root, log = image_folder(tmp_path / "data"), tmp_path / "log"
    jobs = [start(root, log, 0.3) for _ in range(3)]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 12


def test_a_killed_job_leaves_no_lock_behind(tmp_path, decoded):
    root, log = image_folder(tmp_path / "data"), tmp_path / "log"
    job = start(root, log, 600)
    try:
        while not log.exists():
            assert job.poll() is None
            time.sleep(0.05)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    checks.check_image_folder(root, ["A", "P"])
    assert len(decoded) == 12


def test_without_locks_and_without_a_cache_the_check_is_made(tmp_path, decoded, monkeypatch, capfd):
    root = image_folder(tmp_path / "data")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checks.check_image_folder(root, ["A", "P"])
    assert "The check of the images is not remembered: Cannot write" in capfd.readouterr().err
    monkeypatch.setattr(readable_images, "fcntl", None)
    checks.check_image_folder(root, ["A", "P"])
    assert len(decoded) == 24


def test_it_can_be_switched_off(tmp_path, decoded, monkeypatch):
    """The folders are still checked: that costs next to nothing."""
    root = image_folder(tmp_path / "data")
    (tmp_path / "data" / "photo" / "dog" / "1.jpg").write_bytes(b"")
    monkeypatch.setenv("DOMAINFUSION_CHECK_IMAGES", "0")
    checks.check_image_folder(root, ["A", "P"])
    assert decoded == []
    with pytest.raises(InputError, match="one folder per environment"):
        checks.check_image_folder(root, ["A", "P", "S"])


def test_the_progress_bar_names_the_switch(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(readable_images, "tqdm", lambda **options: shown.append(options["desc"]) or Bar())
    checks.check_image_folder(image_folder(tmp_path / "data"), ["A", "P"])
    assert shown == [f"reading {tmp_path}/data once (DOMAINFUSION_CHECK_IMAGES=0 skips this)"]


class Bar:
    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def update(self):
        pass
