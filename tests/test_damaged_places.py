"""Files under hard conditions: eight writers that are killed at any moment, and a disk that is really full."""

import multiprocessing
import os
import random
import subprocess
import time

import pytest
import safetensors.torch
import torch
from PIL import Image

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.files import write_atomically
from domainbed_domainfusion.generated.candidate_cache import CandidateCache
from domainbed_domainfusion.resuming import checkpoints
from domainbed_domainfusion.resuming.checkpoints import Checkpoint

ENTRIES = 20


def latents(i: int) -> torch.Tensor:
    return torch.full((4, 64, 64), float(i))


def write_without_end(folder) -> None:
    cache = CandidateCache(str(folder), None, {})
    while True:
        i = random.randrange(ENTRIES)
        cache._write(folder / f"{i % 3}" / f"{i}.safetensors", latents(i))


def test_eight_writers_that_are_killed_leave_whole_entries_or_none(tmp_path, capsys):
    context = multiprocessing.get_context("fork")

    def start():
        process = context.Process(target=write_without_end, args=(tmp_path,))
        process.start()
        return process

    random.seed(0)
    writers = [start() for _ in range(8)]
    try:
        for _ in range(30):
            time.sleep(0.02 * random.random())
            victim = random.randrange(8)
            writers[victim].kill()
            writers[victim] = start()
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    cache, found = CandidateCache(str(tmp_path), None, {}), 0
    for i in range(ENTRIES):
        entry = cache._read(tmp_path / f"{i % 3}" / f"{i}.safetensors")
        found += entry is not None
        assert entry is None or torch.equal(entry, latents(i))
    assert found > 5
    assert capsys.readouterr().out == ""  # no entry is damaged


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 1 MB in memory, with a file of 900 KB on it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a file system")
    try:
        (place / "ballast").write_bytes(b"0" * 900_000)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def files(place) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content",
    [
        b"1" * 300_000,
        lambda name: safetensors.torch.save_file({"x": torch.zeros(100_000)}, name),
        lambda name: Image.effect_noise((700, 700), 100).save(name, "PNG"),
        lambda name: torch.save(torch.zeros(100_000), name),
    ],
    ids=["bytes", "safetensors", "picture", "torch"],
)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(full_disk, content):
    (full_disk / "file.bin").write_text("old")
    with pytest.raises(InputError, match=r"Cannot write .*file\.bin \(.*\): free some space"):
        write_atomically(full_disk / "file.bin", content)
    assert (full_disk / "file.bin").read_text() == "old"
    assert files(full_disk) == {"ballast": 900_000, "file.bin": 3}


def test_a_cache_on_a_full_disk_says_so_once_and_keeps_what_it_has(full_disk, capsys):
    cache = CandidateCache(str(full_disk / "cache"), None, {})
    for i in range(4):  # each has 64 KB
        cache._write(cache.folder / f"{i}.safetensors", latents(i))
    assert not cache.writes
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "No space left on device" in printed
    assert sorted(path.name for path in cache.folder.iterdir()) == ["0.safetensors", "1.safetensors"]
    for i in range(2):
        assert torch.equal(cache._read(cache.folder / f"{i}.safetensors"), latents(i))


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(full_disk):
    (full_disk / "ballast").write_bytes(b"0" * 500_000)
    folder = full_disk / "resume"
    for updates in (1, 2):
        checkpoints.write(folder, Checkpoint(updates, {}, {"0": torch.full((60_000,), float(updates))}))
    with pytest.raises(InputError, match="No space left on device"):
        checkpoints.write(folder, Checkpoint(3, {}, {"0": torch.full((60_000,), 3.0)}))
    newest = next(checkpoints.newest_first(folder))
    assert newest.updates == 2 and newest.tensors["0"].eq(2).all()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
