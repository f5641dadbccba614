"""The names that a verb needs in the host before it runs."""


def add_our_names_to_the_host() -> None:
    """An attached host imports `register` by itself; one that is not attached learns our names here."""
    from ..hosting import host

    host.check_imports()
    from .. import register  # noqa: F401
