"""The commands of the pages: every block of them has a marker, every one parses, and those marked `here` are run."""

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.report.figures import drawing

from .. import forks
from ..conftest import TinyDigits
from .command_lines import flags, make_targets, parse, run_module, verbs
from .pages import COMMAND, NEEDS, PAGES, README, ROOT, Block, blocks, inline_code, prose

PAGE_WIDTH = 96  # characters of a block that a repository's page shows
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
HERE = [block for block in COMMANDS if block.values == ("here",)]


def test_there_are_commands_to_check():
    """So that a change of the pages' form does not leave the tests below without work."""
    assert len(COMMANDS) >= 15 and len(HERE) >= 7
    assert {page.name for page in PAGES} >= {"README.md", "method.md", "runs.md", "sweeps-and-cost.md", "domainbed.md"}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_of_commands_says_how_it_is_checked(block):
    if block.language != "sh":
        assert not any(map(COMMAND.match, block.text.splitlines())), "it has a command: fence it as sh, with a marker"
        return
    assert block.kind, "write <!-- test: … --> or <!-- needs: … --> on the line before the fence"
    if block.kind == "needs":
        assert set(block.values) <= NEEDS
    elif block.values != ("here",):
        for name in block.values:
            file, _, function = name.partition("::")
            tree = ast.parse((ROOT / file).read_text())
            functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            assert function.startswith("test_") and function in functions, f"there is no test {name}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_fits_a_page(block):
    assert max(map(len, block.text.splitlines())) <= PAGE_WIDTH, "a longer line is cut off where the page is read"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_stands_in_an_indented_block(page):
    assert not [line for line in prose(page).splitlines() if line.startswith("    ") and COMMAND.match(line.lstrip())]


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_the_commands_of_a_block_parse(block):
    assert block.commands()
    for words in block.commands():
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_sentence_exist(page):
    """`make X` is a target, `domainfusion VERB --flag` a verb with such a flag, `python -m X --flag` parses."""
    for code in inline_code(page):
        words = code.removeprefix(".venv/bin/").split()
        if words[0] == "make" and len(words) > 1:
            assert words[1] in make_targets(), f"the Makefile has no target {words[1]}"
        elif words[0] == "domainfusion" and len(words) > 1 and words[1] not in ("--help", "VERB"):
            assert words[1] in verbs(), code
            assert {word for word in words[2:] if word.startswith("--")} <= flags(words[1]), code
        elif words[:2] == ["python", "-m"]:
            parse(words)


def test_flags_in_a_sentence_belong_to_some_command():
    of_hosts = {"--test_envs"}
    known = {flag for verb in verbs() for flag in flags(verb)} | of_hosts
    known |= set(re.findall(r'"(--[\w-]+)"', (ROOT / "benchmarks" / "__main__.py").read_text()))
    for page in PAGES:
        for code in inline_code(page):
            if code.startswith("--"):
                assert {word for word in code.split() if word.startswith("--")} <= known, f"{page.name}: {code}"


# ---- run ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_ldm) -> Path:
    """A working folder with SWEEP, a sweep of one DomainFusion job on tiny data; JOB, its job; IMAGES, some images."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "sweeps").symlink_to(ROOT / "sweeps")
    (folder / "JOB").symlink_to(folder / "SWEEP" / "job")
    rng = np.random.default_rng(0)
    for name in (f"{environment}/{digit}" for environment in ("photo", "sketch") for digit in ("zero", "one")):
        (folder / "IMAGES" / name).mkdir(parents=True)
        image = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "IMAGES" / name / "1.png")
    hparams = {"ldm": tiny_ldm, "batch_size": 4, "backbone": "mnist_cnn", "generation_interval": 1}
    hparams |= {"denoising_steps": 2, "save_generated": "all", "image_size": 32}
    arguments = ["--algorithm", "DomainFusion", "--dataset", "TinyDigits", "--steps", "5", "--test_envs", "0"]
    arguments += ["--data_dir", "data", "--output_dir", "SWEEP/job", "--hparams", json.dumps(hparams)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(host.datasets, "TinyDigits", TinyDigits, raising=False)
        module = f"{host.NAME}.scripts.train"
        patch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": module}))
        for stream in ("stdout", "stderr"):
            patch.setattr(sys, stream, getattr(sys, stream))  # the script replaces them
        run_module(module, arguments)
    context._current = context.TrainingContext()
    return folder


@pytest.mark.parametrize("block", HERE, ids=str)
def test_a_block_marked_here_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(drawing, "DPI", 30)
    monkeypatch.setattr(host.datasets, "TinyDigits", TinyDigits, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for program, *arguments in block.commands():
        if program == "domainfusion":
            assert cli.main(arguments) == 0
        else:
            assert (program, arguments[0]) == ("python", "-m")
            forks.run(*arguments[1:], folder=Path.cwd()).check_returncode()
    context._current = context.TrainingContext()
    for output in re.findall(r"--(?:output|sheet) (\S+)", block.text):
        assert Path(output).exists(), f"{output} was not written"


# ---- the helpers themselves ----


def test_commands_of_a_block():
    text = "make x     # it's a note\ncd A && domainfusion sweep \\\n    --hparams '{\"a\": 1}'   # b && c"
    text += "\npip install '.[d]'"
    block = Block(README, 1, "sh", None, (), text)
    sweep = ["domainfusion", "sweep", "--hparams", '{"a": 1}']
    assert block.commands() == [["make", "x"], ["cd", "A"], sweep, ["pip", "install", ".[d]"]]


@pytest.mark.parametrize(
    "wrong",
    [
        "make quickstarts",
        "domainfusion repport --input_dir x",
        "domainfusion report --input_folder x",
        "domainfusion report --input x",
        "domainfusion sweep launch --algorithm ERM",
        "domainfusion sweep --dry-run sweeps/nothing.txt",
        "domainfusion estimate --algorithms ERM --hparams '{\"candidate\": 3}'",
        "domainfusion generate --data x --output y --hparams '{\"strength\": 7}'",
        "python -m domainbed.scripts.collect_results --input x",
        "python -m domainbed.scripts.sweep launch --algorithms ERM",
        "python -m domainbed_domainfusion.hparams",
        "python -m benchmarks --suite all",
        "curl x",
    ],
)
def test_a_wrong_command_is_found(wrong):
    (words,) = Block(README, 1, "sh", None, (), wrong).commands()
    with pytest.raises((AssertionError, InputError, SystemExit)):
        parse(words)
