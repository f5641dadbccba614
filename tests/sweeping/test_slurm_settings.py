"""slurm.toml: what it may hold, what Slurm gets of it, and a sentence for everything else."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.sweeping.launchers import slurm_settings
from domainbed_domainfusion.sweeping.launchers.slurm_settings import SlurmSettings, find, read, time_in_minutes

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

WHOLE = """
partition = "gpu"
account = "vision"
qos = "long"
constraint = "h100"
time = "2-12:00:00"
gpus = 2
cpus = 12
memory = "64G"
array_parallelism = 20
signal_seconds = 300
setup = ["module load cuda", "source env/bin/activate"]
sbatch = { exclude = "node7", exclusive = true, nice = 100 }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "slurm.toml"
    path.write_text(text, encoding="utf-8")
    return path


def batch_script(chosen: SlurmSettings, folder: Path) -> list[str]:
    """The lines that submitit writes for these settings."""
    submitit = pytest.importorskip("submitit")
    from submitit.slurm.slurm import _make_sbatch_string

    assert set(chosen.parameters()) <= submitit.SlurmExecutor._valid_parameters()
    return _make_sbatch_string(command="command", folder=folder, map_count=50, **chosen.parameters()).splitlines()


def test_every_setting_reaches_the_batch_script(tmp_path):
    lines = batch_script(read(written(tmp_path, WHOLE)), tmp_path)
    assert {
        "#SBATCH --partition=gpu",
        "#SBATCH --account=vision",
        "#SBATCH --qos=long",
        "#SBATCH --constraint=h100",
        "#SBATCH --time=3600",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --mem=64G",
        "#SBATCH --array=0-49%20",
        "#SBATCH --signal=USR2@300",
        "#SBATCH --exclude=node7",
        "#SBATCH --exclusive",
        "#SBATCH --nice=100",
        "#SBATCH --requeue",
        "module load cuda",
        "source env/bin/activate",
    } <= set(lines)
    assert lines.index("module load cuda") < lines.index("source env/bin/activate")
    assert any(line.startswith("srun ") and "--cpus-per-task=12" in line for line in lines)


def test_without_a_file_there_are_defaults(tmp_path):
    lines = batch_script(read(None), tmp_path)
    assert {"#SBATCH --time=1440", "#SBATCH --gpus-per-node=1", "#SBATCH --cpus-per-task=8"} <= set(lines)
    assert not any("partition" in line or "account" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        (90, 90), ("90", 90), ("90:00", 90), ("90:01", 91), ("1:30:00", 90), ("24:00:00", 1440), ("2-0", 2880),
        ("1-12", 2160), ("1-12:30", 2190), ("1-12:30:30", 2191),
        (0, None), (-1, None), (True, None), ("", None), ("0:00", None), ("1h", None), ("1:2:3:4", None), (1.5, None),
        ("-5", None), ("1-", None), ("UNLIMITED", None), ("9" * 30, None), (10**9, None), ("\u0664\u0660", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text, minutes):
    assert time_in_minutes(text) == minutes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu = 1", "There is no setting called 'gpu': did you mean 'gpus'"),
        ("gpus = -1", "gpus = -1 is not a whole number from 0 to 64"),
        ("cpus = true", "cpus = True is not a whole number"),
        ('time = "a day"', "time = 'a day' is not a time limit"),
        ('memory = "lots"', "memory = 'lots' is not an amount of memory"),
        ("memory = 32", "memory = 32 is not an amount of memory"),
        ('partition = ""', "partition = '' is not a name"),
        ('partition = "a\\nb"', "is not a name in quotes"),
        ('setup = "module load cuda"', "is not a list of shell lines"),
        ('sbatch = { "Exclude!" = "x" }', "is not a table of sbatch's long options"),
        ("time = 2\nsignal_seconds = 120", "is not longer than signal_seconds = 120"),
        ("gpus = ", "is not TOML"),
        ("gpus = 1\ngpus = 2", "is not TOML"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path, text, message):
    with pytest.raises(InputError, match=".") as raised:
        read(written(tmp_path, text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc-_A", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = st.one_of(st.sampled_from(sorted(slurm_settings.CHECKS)), st.text("abcdefgpu_", min_size=1, max_size=8))


def toml(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {toml(each)}' for key, each in value.items()) + " }"
    return repr(value)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_table_is_either_one_sentence_or_a_batch_script(tmp_path, table):
    text = "".join(f"{name} = {toml(value)}\n" for name, value in table.items())
    try:
        chosen = read(written(tmp_path, text))
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    lines = batch_script(chosen, tmp_path)
    assert sum(line.startswith("#SBATCH --time=") for line in lines) == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_file_is_either_one_sentence_or_settings(tmp_path, content):
    path = tmp_path / "slurm.toml"
    path.write_bytes(content)
    try:
        assert isinstance(read(path), SlurmSettings)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_the_variable_comes_before_the_sweeps_folder_and_that_before_the_current_one(tmp_path, monkeypatch):
    for name in ("named", "beside", "current"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, "gpus = 1")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.delenv("DOMAINFUSION_SLURM", raising=False)
    assert find().resolve() == tmp_path / "current" / "slurm.toml"
    assert find(beside=tmp_path / "beside") == tmp_path / "beside" / "slurm.toml"
    assert find(beside=tmp_path).resolve() == tmp_path / "current" / "slurm.toml"
    monkeypatch.setenv("DOMAINFUSION_SLURM", str(tmp_path / "named" / "slurm.toml"))
    assert find(beside=tmp_path / "beside") == tmp_path / "named" / "slurm.toml"
    monkeypatch.setenv("DOMAINFUSION_SLURM", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="names .*nothing, which is no file: correct it, or unset it"):
        find()


def test_the_example_in_the_documentation_is_read_and_shows_the_defaults(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "slurm.md").read_text()
    chosen = read(written(tmp_path, page.split("```toml\n")[1].split("```")[0]))
    defaults = SlurmSettings()
    names = ("time", "gpus", "cpus", "memory", "array_parallelism", "signal_seconds")
    assert {name: getattr(chosen, name) for name in names} == {name: getattr(defaults, name) for name in names}
    assert {*names, "partition", "account", "setup", "sbatch"} | {"qos", "constraint"} == set(slurm_settings.CHECKS)
