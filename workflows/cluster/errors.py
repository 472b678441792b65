"""Failures of the cluster, and what is at the bottom of the errors that Ray wraps."""

import errno
import re

from models.errors import RayconteurError

# What Ray Data puts behind the words of an error.
_RETRIED = re.compile(r"\nFailed to .* after \d+/\d+ attempts.*", re.S)


class ClusterError(RayconteurError):
    """A cluster that cannot be reached or lacks what a stage asks for."""


def root_cause(error: BaseException) -> BaseException:
    """What went wrong first, without what Ray puts around it."""
    while (
        inner := getattr(error, "cause", None) or getattr(error, "controller_failure", None) or error.__cause__
    ) is not None:
        error = inner
    return error


def innermost(error: BaseException) -> str:
    """What went wrong first, in words."""
    cause = root_cause(error)
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{cause}; make room there, and the same command goes on from here"
    if isinstance(cause, ValueError):
        return _RETRIED.sub("", str(cause))
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no words'}"
