"""The one exception that the command line turns into a single clear line."""


class VlaeError(ValueError):
    """What the caller gave can't be used; the message says what was expected and what to do.

    A subclass of `ValueError`, so that library users need no import to catch it. The command line prints it as one
    line and exits with code 2; anything else is a bug and keeps its traceback.
    """
