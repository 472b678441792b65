"""The log of requests."""

import logging

logger = logging.getLogger("rayconteur.requests")


def write_log() -> None:
    """Write the lines of requests to standard error: Ray keeps it, in the file of this process under its logs."""
    top = logging.getLogger("rayconteur")
    top.setLevel(logging.INFO)
    if not top.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        top.addHandler(handler)
