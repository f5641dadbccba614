"""The files of checkpoints and the journal: damage is named, and the checkpoint before is used."""

import hashlib
import json

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.resuming import checkpoints, journal
from domainbed_domainfusion.resuming.checkpoints import Checkpoint
from domainbed_domainfusion.resuming.journal import Journal


def checkpoint(updates: int) -> Checkpoint:
    return Checkpoint(updates, {"note": [updates]}, {"0": torch.full((3,), float(updates))})


@pytest.fixture
def folder(tmp_path):
    for updates in (3, 20, 100):
        checkpoints.write(tmp_path, checkpoint(updates))
    return tmp_path


def test_the_last_two_are_kept_and_the_newest_is_read_first(folder):
    found = list(checkpoints.newest_first(folder))
    assert [each.updates for each in found] == [100, 20]
    assert found[0].content == {"note": [100]} and found[0].tensors["0"].tolist() == [100.0] * 3
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("kind", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(folder, capsys, kind, damage):
    path = folder / f"checkpoint-000100.{kind}"
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "flip":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:middle] if damage == "cut" else b"")
    assert next(checkpoints.newest_first(folder)).updates == 20
    printed = capsys.readouterr().out
    if (kind, damage) != ("json", "gone"):  # then it was never complete: the JSON file is written last
        assert "checkpoint-000100.json is damaged" in printed and "the one before it is used" in printed


def test_every_flipped_byte_is_found(tmp_path, capsys):
    checkpoints.write(tmp_path, checkpoint(1))
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        for position in range(len(content)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            assert list(checkpoints.newest_first(tmp_path)) == [], f"{path.name}, byte {position}"
        path.write_bytes(content)
    assert len(list(checkpoints.newest_first(tmp_path))) == 1


def test_a_disk_without_room_is_found_before_training(tmp_path):
    with pytest.raises(InputError, match=r"take .* GB, but .* has .* GB free: free some space"):
        checkpoints.check_space(tmp_path, 2**60)
    checkpoints.check_space(tmp_path, 1)


def test_the_journal_holds_what_was_appended_up_to_a_checkpoint(tmp_path):
    path = tmp_path / "journal"
    written = Journal(path)
    written.append({"update": 0, "loss": 0.1})
    written.append({"update": 1, "loss": float("nan")})
    length, digest = written.length, written.digest()
    written.append({"update": 2})
    written.close()
    assert digest == hashlib.sha256(path.read_bytes()[:length]).hexdigest()
    records = journal.read(path, length, digest)
    assert [record["update"] for record in records] == [0, 1]

    continued = Journal(path, length)  # cuts what came after the checkpoint
    assert path.stat().st_size == length and continued.digest() == digest
    continued.append({"update": 2, "again": True})
    continued.close()
    assert journal.read(path, continued.length, continued.digest())[2] == {"update": 2, "again": True}


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: text.replace(b"0.5", b"0.6")], ids=["cut", "flip"]
)
def test_a_damaged_journal_is_not_read(tmp_path, change):
    path = tmp_path / "journal"
    written = Journal(path)
    written.append({"loss": 0.5})
    written.close()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="journal does not hold what was written"):
        journal.read(path, written.length, written.digest())


def test_a_read_only_folder_is_one_sentence(tmp_path):
    (tmp_path / "resume").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"Cannot write .*: free some space, choose another output folder"):
        Journal(tmp_path / "resume" / "journal")


def test_no_pickle_is_written(folder):
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text().split("\n", 1)[1])
        else:
            assert path.read_bytes()[8:9] == b"{"  # the header of safetensors
