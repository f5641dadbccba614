"""attach, check and detach, on a stand-in of a checkout: files with the names and signatures that are relied on."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import attach, host

ROOT = Path(__file__).resolve().parents[2]


def source(names):
    """Python source that binds each name of REQUIRED, with its parameters."""
    lines = []
    for name, parameters in names:
        klass, _, method = name.rpartition(".")
        arguments = ", ".join((("self",) if klass else ()) + (parameters or ()))
        if klass:
            lines.append(f"class {klass}({klass if klass in ' '.join(lines) else 'object'}):")
            lines.append(f"    def {method}({arguments}):\n        pass")
        elif parameters is None:
            lines.append(f"{name} = []")
        else:
            lines.append(f"def {name}({arguments}):\n    pass")
    return "\n".join(lines) + "\n"


@pytest.fixture
def checkout(tmp_path):
    files = {}
    for file, name, parameters in attach.REQUIRED:
        if name != "ERM.update":
            files.setdefault(file, []).append((name, parameters))
    for file, names in files.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        text = source(names)
        if file == attach.PATCHED:
            text += "    def update(self, minibatches, unlabeled=None):\n        pass\n"
        path.write_text(text)
    return tmp_path


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*.py"))}


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n", b"  # no newline at the end"])
@pytest.mark.parametrize("crlf", [False, True])
def test_detach_gives_back_the_same_bytes(checkout, ending, crlf, capsys):
    target = checkout / attach.PATCHED
    target.write_bytes((target.read_bytes() + ending).replace(b"\n", b"\r\n" if crlf else b"\n"))
    os.chmod(target, 0o664)
    before = contents(checkout)
    assert attach.check(checkout) == 1 and contents(checkout) == before
    for _ in range(2):
        assert attach.attach(checkout) == 0
        assert target.read_text().count(attach.IMPORT) == 1 and target.read_bytes().startswith(before[target])
        assert target.read_text().splitlines()[-1] == attach.LINE and target.stat().st_mode & 0o777 == 0o664
    assert attach.check(checkout) == 0
    for _ in range(2):
        assert attach.detach(checkout) == 0
        assert contents(checkout) == before
    printed = capsys.readouterr().out
    assert [printed.count(word) for word in ("Already attached", "Detached", "nothing to undo")] == [1, 1, 1]


def test_detach_leaves_what_came_after(checkout):
    target = checkout / attach.PATCHED
    before = target.read_text()
    attach.attach(checkout)
    target.write_text(target.read_text() + "MINE = 1\n")
    attach.detach(checkout)
    assert target.read_text() == before + "MINE = 1\n"


@pytest.mark.parametrize("file, name, parameters", [each for each in attach.REQUIRED if "." not in each[1]])
def test_another_version_is_named_and_left_alone(checkout, file, name, parameters):
    path = checkout / file
    path.write_text(path.read_text().replace(f"{name} = ", "other = ").replace(f"def {name}(", "def other("))
    before = contents(checkout)
    with pytest.raises(InputError) as error:
        attach.attach(checkout)
    assert str(error.value).startswith(
        f"This DomainBed is another version than ours fits: {path} has no {name}; "
        "nothing was changed, use facebookresearch/DomainBed at b93c22a"
    )
    assert contents(checkout) == before


def test_other_parameters_are_named(checkout):
    path = checkout / "domainbed/lib/fast_data_loader.py"
    path.write_text(path.read_text().replace("weights, ", ""))
    with pytest.raises(
        InputError,
        match=r"InfiniteDataLoader.__init__ in .*fast_data_loader.py, line 2, takes "
        r"\(dataset, batch_size, num_workers\) instead of \(dataset, weights, ",
    ):
        attach.attach(checkout)
    path.write_text("def broken(:\n")
    with pytest.raises(InputError, match="fast_data_loader.py, line 1, is not Python"):
        attach.check(checkout)
    path.unlink()
    with pytest.raises(InputError, match="fast_data_loader.py is missing; nothing was changed"):
        attach.attach(checkout)


@pytest.mark.parametrize(
    "code, line", [("class SAM(ERM):\n    pass\n", 1), ("X = 0\nfrom mine import Fusion as DomainFusion\n", 2)]
)
def test_a_local_algorithm_of_our_name_is_reported(checkout, code, line):
    path = checkout / attach.PATCHED
    path.write_text(code + path.read_text())
    before = contents(checkout)
    sentence = rf"already has a (SAM|DomainFusion) of its own \(.*algorithms.py, line {line}\): rename it first"
    with pytest.raises(InputError, match=sentence):
        attach.attach(checkout)
    assert contents(checkout) == before


def test_a_folder_that_is_no_checkout(tmp_path):
    for action in (attach.attach, attach.check, attach.detach):
        with pytest.raises(
            InputError,
            match="no DomainBed checkout in .* .domainbed/algorithms.py is missing.: give the root folder of a clone",
        ):
            action(tmp_path)


def test_a_package_that_is_not_installed_is_mentioned(checkout, capsys, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    attach.attach(checkout)
    assert "domainbed-domainfusion is not installed in this Python environment: install it" in capsys.readouterr().out


def test_the_patch_file_adds_the_same_line():
    lines = Path(ROOT, "patches", "0001-register.patch").read_text().splitlines()
    assert [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")] == [attach.LINE]
    assert not [line for line in lines[lines.index("--- a/" + attach.PATCHED) + 3 :] if line.startswith((" ", "-"))]


def test_the_guarded_names_are_those_that_register_adds():
    known = {
        **{name: host.algorithms.get_algorithm_class(name) for name in host.algorithms.ALGORITHMS},
        **{name: host.datasets.get_dataset_class(name) for name in host.datasets.DATASETS},
    }
    added = [name for name, cls in known.items() if not cls.__module__.startswith(f"{host.NAME}.")]
    assert added == [name for _, names in attach.ADDED for name in names]
