"""The request log."""

import logging

logger = logging.getLogger("rayconteur.requests")


def write_log() -> None:
    """Write the request log to standard error, which Ray stores in this process's log file."""
    top = logging.getLogger("rayconteur")
    top.setLevel(logging.INFO)
    if not top.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        top.addHandler(handler)
