"""The README against the code: its hparams table, and the commands that other places rely on."""

from pathlib import Path

from domainbed_domainfusion.hosting import hparams

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_hparams_table_is_the_one_in_the_code():
    """`python -m domainbed_domainfusion.hosting.hparams` prints it."""
    assert hparams.markdown_table() in README


def test_its_first_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in README and f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
