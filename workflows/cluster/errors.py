"""Find the cause inside the errors that Ray wraps: a user's mistake, which is one sentence, or a bug.

A user's mistake is shown as its text alone. Of anything else, the traceback is kept in a file.
"""

import contextlib
import importlib
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping

from models.errors import RayconteurError
from workflows.store import IS_FULL

# Ray Data appends this to the text of an error.
_RETRIED = re.compile(r"\nFailed to .* after \d+/\d+ attempts.*", re.S)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
# The last line of a traceback if it names a class of ours; the text may have further lines.
_OURS = re.compile(r"^((?:models|serve|workflows)(?:\.\w+)+)\.(\w+): ", re.M)


class ClusterError(RayconteurError):
    """A cluster that cannot be reached, or that lacks what a stage needs."""


class StageCrashed(RuntimeError):
    """A stage failed for another reason than a user's mistake. The error is `__cause__`; the text is one line."""


def root_cause(error: BaseException) -> BaseException:
    """The innermost cause, without the exceptions that Ray wraps around it."""
    while (inner := _inside(error)) is not None:
        error = inner
    if getattr(error, "actor_init_failed", False):  # Ray keeps only the text of what `__init__` raised
        return mistake_in(str(error)) or error
    return error


def _inside(error: BaseException) -> BaseException | None:
    found = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
    if found is None and not isinstance(error, RayconteurError):  # the outermost of ours is the clearest
        found = error.__cause__
    # Ray Data marks errors outside of user functions with a SystemException, which has no information.
    return found if isinstance(found, BaseException) and type(found).__name__ != "SystemException" else None


def mistake_in(text: str) -> RayconteurError | None:
    """The RayconteurError at the end of a traceback, parsed from its text; None if it ends with another error."""
    for found in reversed([*_OURS.finditer(text)]):
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            if issubclass(getattr(importlib.import_module(found[1]), found[2]), RayconteurError):
                return RayconteurError(text[found.end() :].strip())
    return None


def is_users_mistake(error: BaseException) -> bool:
    """Whether the cause is something that the user can fix, in every worker that failed."""
    causes = [root_cause(failure) for failure in _failures(error)]
    return all(
        isinstance(cause, RayconteurError) or (isinstance(cause, OSError) and cause.errno in IS_FULL)
        for cause in causes
    )


def _failures(error: BaseException) -> list[BaseException]:
    """The workers' own errors inside an error of Ray Train; otherwise the error itself."""
    workers = getattr(error, "worker_failures", None)
    return [*workers.values()] if isinstance(workers, Mapping) and workers else [error]


def describe_error(error: BaseException) -> str:
    """One sentence: the text of a user's mistake, otherwise the type of the innermost error and its last line."""
    cause = root_cause(error)
    is_key = isinstance(cause, KeyError) and len(cause.args) == 1  # str() of it is the key's repr
    text = _RETRIED.sub("", str(cause.args[0] if is_key else cause))
    if isinstance(cause, OSError) and cause.errno in IS_FULL:
        return f"{cause}; free some space, then run the same command to resume"
    if isinstance(cause, RayconteurError):
        return text
    lines = [repr(text)] if is_key else text.strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1]}" if lines else f"{type(cause).__name__} (no message)"


def note_traceback(error: BaseException) -> None:
    """Attach the traceback to the error as a note: Ray Train passes on a worker's error without its traceback."""
    error.add_note("".join(traceback.format_exception(error)))


def full_traceback(error: BaseException) -> str:
    """An error's traceback, and the tracebacks of the workers that caused it."""
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
    """Write the text to a new temporary file on this machine; returns the file's path."""
    with tempfile.NamedTemporaryFile("w", prefix="rayconteur-", suffix=".log", delete=False) as file:
        file.write(text)
    return file.name
