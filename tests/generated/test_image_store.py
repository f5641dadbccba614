"""The image store: in memory or in a file, shared with forked and spawned processes, and with bounded memory."""

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated import image_store
from domainbed_domainfusion.generated.image_store import ImageStore


@pytest.fixture(params=["memory", "file"])
def kind(request, monkeypatch):
    if request.param == "file":
        monkeypatch.setattr(image_store, "MOST_BYTES_IN_MEMORY", 0)
    return request.param


def test_it_holds_what_is_written(kind, tmp_path):
    store = ImageStore(5, 8, tmp_path)
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    store.images[:] = images
    assert torch.equal(store.images, images) and store.images.dtype == torch.uint8
    assert list(tmp_path.iterdir()) == [], "a killed run would leave its file behind"


def test_a_forked_process_sees_what_is_written_later(kind, tmp_path):
    store = ImageStore(2, 4, tmp_path)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready, 1)
        os._exit(int(store.images[1, 0, 0, 0]))
    store.images[1] = 7
    os.write(go, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_started_process_opens_the_same_file(monkeypatch, tmp_path):
    monkeypatch.setattr(image_store.multiprocessing, "get_start_method", lambda: "spawn")
    store = ImageStore(2, 4, tmp_path)
    other = pickle.loads(pickle.dumps(store))
    store.images[0] = 9
    assert (other.images[0] == 9).all()
    assert len(list(tmp_path.iterdir())) == 1
    del store
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_memory_is_not_copied_by_accident():
    with pytest.raises(TypeError, match="forked processes only"):
        pickle.dumps(ImageStore(2, 4))


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(image_store, "MOST_BYTES_IN_MEMORY", 0)
    with pytest.raises(InputError, match=r"The generated images take 30720000.0 GB, but .* GB free: free some space"):
        ImageStore(10**11, 320, tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the memory of this process is read from /proc")
def test_410_000_images_run_in_a_small_memory(tmp_path):
    """DomainNet's number of images at 8 × 8 pixels, two rounds, in a file. The process grows by less than 100 MB."""
    code = """
        import resource, sys, torch
        from torch.utils.data import Dataset
        from domainbed_domainfusion import pixels, register
        from domainbed_domainfusion.generated import dataset, image_store
        from domainbed_domainfusion.generated.generation import Generated
        from domainbed_domainfusion.hosting.context import InSplit

        N, SIZE = 410_000, 8
        image_store.MOST_BYTES_IN_MEMORY = 0

        class Source(Dataset):
            def __getitem__(self, index):
                return torch.full((3, SIZE, SIZE), index % 256 / 255), index % 10
            def __len__(self):
                return N

        def unchanged(x, y, seeds, shared):
            none = torch.zeros(len(x), dtype=torch.long)
            return Generated(-x, none, none)

        def own_memory():
            fields = dict(line.split(":") for line in open("/proc/self/status"))
            return sum(int(fields[kind].split()[0]) for kind in ("RssAnon", "RssShmem")) / 1024  # not the file's pages

        dataset.candidate_seeds = lambda *identity: [0]  # a hash for each image would be most of the test's time
        pixel_range = pixels.PixelRange((3, SIZE, SIZE))
        split = InSplit(0, "A", None, Source(), list(range(N)), 16)
        before = own_memory()
        store = dataset.GenerateDataset([split], SIZE, pixel_range, seed=0, budget=0, candidates=1, folder=sys.argv[1])
        for step in (0, 1):
            assert store.refresh(step, unchanged, 512) == N
        for row in (0, N // 2, N - 1):
            image, label = store.version(row)
            index = store.keys[row][1]
            assert label == index % 10 and abs(int(image[0, 0, 0]) - index % 256) <= 1
        x, y, rows = store.minibatch(5)
        assert x.shape == (16, 3, SIZE, SIZE)
        print(own_memory() - before)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout.split()[-1]) < 100
