"""Failures of the cluster, and what is at the bottom of the errors that Ray wraps: a user's mistake, or ours.

Of a user's mistake the text is all that there is to show. Of anything else the traceback is kept in a file.
"""

import contextlib
import errno
import importlib
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping

from models.errors import RayconteurError

# What Ray Data appends to the text of an error.
_RETRIED = re.compile(r"\nFailed to .* after \d+/\d+ attempts.*", re.S)
_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
# The last line of a traceback, where it names a class of ours; the text may go on.
_OURS = re.compile(r"^((?:models|serve|workflows)(?:\.\w+)+)\.(\w+): ", re.M)


class ClusterError(RayconteurError):
    """A cluster that cannot be reached or lacks what a stage asks for."""


class StageCrashed(RuntimeError):
    """A stage that ended by an error which is no mistake of the user's, `__cause__`; the text is one line."""


def root_cause(error: BaseException) -> BaseException:
    """What went wrong first, without what Ray puts around it."""
    while (inner := _inside(error)) is not None:
        error = inner
    if getattr(error, "actor_init_failed", False):  # Ray has the text of what its `__init__` raised, and no more
        return mistake_in(str(error)) or error
    return error


def _inside(error: BaseException) -> BaseException | None:
    found = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
    if found is None and not isinstance(error, RayconteurError):  # of those, the last one says it best
        found = error.__cause__
    # Ray Data's mark of errors that no function of a batch raised: it says nothing.
    return found if isinstance(found, BaseException) and type(found).__name__ != "SystemException" else None


def mistake_in(text: str) -> RayconteurError | None:
    """The user's mistake that a traceback ends with, read from its text."""
    for found in reversed([*_OURS.finditer(text)]):
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            if issubclass(getattr(importlib.import_module(found[1]), found[2]), RayconteurError):
                return RayconteurError(text[found.end() :].strip())
    return None


def is_users_mistake(error: BaseException) -> bool:
    """Whether the user can mend what went wrong first, in all workers that failed."""
    causes = [root_cause(failure) for failure in _failures(error)]
    return all(
        isinstance(cause, RayconteurError) or (isinstance(cause, OSError) and cause.errno in _IS_FULL)
        for cause in causes
    )


def _failures(error: BaseException) -> list[BaseException]:
    """Of Ray Train's error the workers' own, else the error."""
    workers = getattr(error, "worker_failures", None)
    return [*workers.values()] if isinstance(workers, Mapping) and workers else [error]


def describe_error(error: BaseException) -> str:
    """What went wrong first: a user's mistake in its own words, else the kind of the error and its last line."""
    cause = root_cause(error)
    is_key = isinstance(cause, KeyError) and len(cause.args) == 1  # its text is the key's representation
    text = _RETRIED.sub("", str(cause.args[0] if is_key else cause))
    if isinstance(cause, OSError) and cause.errno in _IS_FULL:
        return f"{cause}; make room there, and the same command goes on from here"
    if isinstance(cause, RayconteurError):
        return text
    lines = [repr(text)] if is_key else text.strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1]}" if lines else f"{type(cause).__name__} (no message)"


def note_traceback(error: BaseException) -> None:
    """For workers of Ray Train, which hands on an error without its traceback: the error takes it along as a note."""
    error.add_note("".join(traceback.format_exception(error)))


def full_traceback(error: BaseException) -> str:
    """All that is known of an error: its traceback, and those of the workers whose failure it is."""
    found = ["".join(traceback.format_exception(error))]
    found += [text for text in _worker_tracebacks(error) if text not in found]
    return _COLOR.sub("", "\n".join(dict.fromkeys(found)))


def _worker_tracebacks(error: BaseException) -> Iterator[str]:
    chain: BaseException | None = error
    while chain is not None:
        for failure in _failures(chain):
            if failure is not chain:
                yield "".join(traceback.format_exception(failure))
        chain = _inside(chain)


def write_traceback(text: str) -> str:
    """Keep it in a file of this machine; the file's path."""
    with tempfile.NamedTemporaryFile("w", prefix="rayconteur-", suffix=".log", delete=False) as file:
        file.write(text)
    return file.name
