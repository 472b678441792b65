"""The root of all errors that a user can fix; their text is the whole message."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class RayconteurError(ValueError):
    """A mistake that the user can fix: the command line prints its text and nothing else.

    The text names the field or the file and line, what was found, the rule and the fix. Any other exception is a bug:
    the command line keeps its traceback in a file and prints the path.

    The tree of subclasses, which tests/unit/test_errors.py compares with the code:

        RayconteurError
            ApiError
            BaseModelError
            CannotBeTrained
            ChatTemplateError
            ClusterError
                UnknownJob
            ClusterFileError
            EndpointError
            KnowledgeError
            MessageError
            NoSmallModel
            PatternTooSlow
            Refused
            ReplyCut
            RequestRefused
            SourceError
            SpecError
            StageFailed
                GateFailed
            StoreError
            StudyError
            TooLarge
            TrainingDiverged
            Unfollowable
            UnreadableFile
            UnusableKey
            UnusableLine
            UnusableScores
            WrongSource
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Pickle the fields: by default, unpickling calls `__init__` with the text alone."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    return error


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is closest to a mistyped one; `cutoff` is the minimum similarity, from 0 to 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)
