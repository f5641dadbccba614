"""Random damage and random input (hypothesis): each is one sentence or is understood, and harms nothing that exists.

slurm.toml has tests of its own in tests/sweeping/test_slurm_settings.py. Together they are 1,350 inputs.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated.candidate_cache import CandidateCache
from domainbed_domainfusion.hosting import hparams
from domainbed_domainfusion.hosting.checks import check_hparams_text
from domainbed_domainfusion.resuming import checkpoints
from domainbed_domainfusion.resuming.checkpoints import Checkpoint
from domainbed_domainfusion.sweeping import sweep_files

ONCE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").rglob("*.txt"))


def many(count: int):
    return settings(max_examples=count, deadline=None, suppress_health_check=ONCE)


@st.composite
def damages(draw) -> list[tuple[str, float, bytes]]:
    """Changes of a file: where (a share of its length), and what is written there, put in between, or cut off."""
    kind = st.sampled_from(["write", "insert", "cut"])
    return draw(st.lists(st.tuples(kind, st.floats(0, 1), st.binary(min_size=1, max_size=40)), min_size=1, max_size=3))


def damaged(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, new in changes:
        at = int(where * len(content))
        after = {"write": content[at + len(new) :], "insert": content[at:], "cut": b""}[kind]
        content = content[:at] + (b"" if kind == "cut" else new) + after
    return content


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for updates in (1, 2):
        tensors = {"weight": torch.full((5,), float(updates)), "count": torch.tensor(updates)}
        checkpoints.write(folder, Checkpoint(updates, {"note": ["text", updates]}, tensors))
    return folder


@many(200)
@given(kind=st.sampled_from(["json", "safetensors"]), changes=damages())
def test_a_damaged_checkpoint_is_passed_over_and_no_other_is_touched(two_checkpoints, tmp_path, kind, changes):
    folder = tmp_path / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(two_checkpoints, folder)
    path = folder / f"checkpoint-000002.{kind}"
    before = path.read_bytes()
    path.write_bytes(damaged(before, changes))
    newest = next(checkpoints.newest_first(folder))
    whole = path.read_bytes() == before  # the change may have written what was there
    assert newest.updates == (2 if whole else 1) and newest.tensors["weight"].eq(newest.updates).all()
    assert newest.content == {"note": ["text", newest.updates]}


@many(100)
@given(changes=damages())
def test_a_damaged_entry_of_the_cache_is_made_again(tmp_path, changes):
    cache, latents = CandidateCache(str(tmp_path), None, {}), torch.arange(12.0).reshape(3, 2, 2)
    path = tmp_path / "ab" / "entry.safetensors"
    cache._write(path, latents)
    before = path.read_bytes()
    path.write_bytes(damaged(before, changes))
    found = cache._read(path)
    assert found is None if path.read_bytes() != before else torch.equal(found, latents)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@many(200)
@given(st.dictionaries(st.sampled_from(sorted(hparams.ROWS)), JSON, min_size=1, max_size=3))
def test_any_values_of_hparams_are_in_range_or_one_sentence(values):
    try:
        assert check_hparams_text(json.dumps(values)) is not None
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert any(name in str(error) for name in values)
    else:
        assert all(hparams.ROWS[name].valid(value) for name, value in values.items())


@many(100)
@given(st.text(max_size=40))
@example("[" * 100_000)
@example('{"lr": ' + "9" * 5000 + "}")
@example('{"lr": 1e999}')
def test_any_text_of_hparams_is_an_object_or_one_sentence(text):
    try:
        assert isinstance(check_hparams_text(text), dict)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


@many(150)
@given(st.sampled_from(SWEEPS), damages())
def test_any_damaged_sweep_file_is_read_or_one_sentence(tmp_path, original, changes):
    path = tmp_path / "sweep.txt"
    path.write_bytes(damaged(original.read_bytes(), changes))
    try:
        assert sweep_files.read(path).sweeps
    except InputError as error:
        assert str(error).startswith(str(path)) or path.name in str(error)
        assert len(str(error).splitlines()) == 1
