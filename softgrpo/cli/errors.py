"""Errors the command line ends with; everything else that is wrong is a ValueError."""


class RunFailed(RuntimeError):
    """A run that had to stop on its way; the message says where, and what is left."""
