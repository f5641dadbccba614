"""The one exception for bad input."""


class InputError(SystemExit):
    """Something the user gave cannot work; the message is one sentence that says what and how to mend it.

    A `SystemExit`, so that a command line prints the sentence without a traceback and exits with status 1,
    and so that no `except Exception` on the way swallows it.
    """
