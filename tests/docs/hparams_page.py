"""`make docs`: print the table of hparams into docs/hparams.md again, from the code."""

from domainbed_domainfusion.files import write_atomically
from domainbed_domainfusion.hosting import hparams

from .pages import ROOT

PAGE = ROOT / "docs" / "hparams.md"


def main() -> None:
    before, _, _ = PAGE.read_text(encoding="utf-8").partition("| hparam |")
    write_atomically(PAGE, f"{before}{hparams.markdown_table()}\n")


if __name__ == "__main__":
    main()
