"""data.filter: a user's own function, by its dotted path, that decides about each conversation.

keep = UserFilter.of("/folder/mymodule:keep")      # the pipeline file's folder, where the module may be
keep.function()                                    # import it here: raises StageFailed
keep.reason(messages, tools)                       # in any process: None, or why the conversation is left out
keep.code.write(working_dir)                       # for a job: mymodule.py beside the job's pipeline file

The function gets {"messages": [...], "tools": [...] or None} and returns True to keep the conversation.
"""

import inspect
import re
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from models.chat.form import Message
from models.errors import nearest
from workflows.cluster.errors import describe_error
from workflows.corpus.errors import UnusableLine
from workflows.corpus.user_code import UserCode
from workflows.stage import StageFailed

FIELD = "data.filter"
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_MAX_SHOWN = 80


Function = Callable[[dict[str, Any]], Any]
# By the filter's key; of each process.
_IMPORTED: dict[str, Function] = {}


@dataclass(frozen=True)
class UserFilter:
    """A function by its dotted path, and its code where that is beside the pipeline file."""

    name: str
    code: UserCode

    @classmethod
    def of(cls, path: str) -> "UserFilter":
        """The filter `path`: mymodule:keep, after the folder where the module is unless it is installed; raises
        StageFailed.
        """
        folder, _, name = path.rpartition("/")
        if not _NAME.fullmatch(name):
            raise StageFailed(
                f"{FIELD}: got {name!r}; name a function by its module, as in mymodule:keep or package.module:keep"
            )
        module = name.partition(":")[0]
        return cls(name, UserCode.beside(module, Path(folder), FIELD) if folder else UserCode())

    @cached_property
    def key(self) -> str:
        """Changes with the name and with the code beside the pipeline file."""
        return f"{self.name} {self.code.key}"

    def function(self) -> Function:
        """The function, imported in this process; raises StageFailed."""
        if self.key not in _IMPORTED:
            _IMPORTED[self.key] = self._import()
        return _IMPORTED[self.key]

    def reason(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> str | None:
        """Why a conversation is left out, or None. Raises UnusableLine where the function fails on it, and
        StageFailed where it cannot be imported.
        """
        function = self.function()
        # Copies: what a filter changes must not change the corpus.
        conversation = {"messages": [dict(message) for message in messages], "tools": tools}
        try:
            found = function(conversation)
        except (Exception, SystemExit) as error:
            raise UnusableLine(f"{FIELD}: {self.name} raised {describe_error(error)}{self._place(error)}") from None
        if not isinstance(found, bool | np.bool_):
            shown = repr(found)[:_MAX_SHOWN]
            raise UnusableLine(
                f"{FIELD}: {self.name} returned {shown} ({type(found).__name__}); it must return True or False"
            )
        return None if found else f"{FIELD}: {self.name} returned False"

    def _import(self) -> Function:
        module, _, name = self.name.partition(":")
        try:
            found = self.code.module(module)
        except (Exception, SystemExit) as error:
            raise StageFailed(
                f"{FIELD}: {module} cannot be imported on {socket.gethostname()}: "
                f"{describe_error(error)}{self._place(error)}; {self._fix(error)}"
            ) from None
        function = getattr(found, name, None)
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise StageFailed(f"{FIELD}: {name} of {self._where(found)} {_is_no_function(function, name, found)}")
        return cast(Function, function)

    def _where(self, module: ModuleType) -> str:
        """The file of a module: of the user's own the one that they edit, not its copy."""
        file = str(getattr(module, "__file__", None) or module.__name__)
        return next((f"{own} beside the pipeline file" for own in self.code.files if file.endswith(f"/{own}")), file)

    def _fix(self, error: BaseException) -> str:
        """How to have the module, or what it imports, on every node."""
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        top = self.name.partition(":")[0].partition(".")[0]
        if lacking is None:
            return "a filter is imported on each node that prepares data"
        if lacking.partition(".")[0] == top and not self.code.files:
            return (
                f"put {top}.py or the package {top}/ beside the pipeline file, and it is sent to all nodes, or "
                "install it on each node"
            )
        return (
            f"put {lacking} beside the pipeline file, and it is sent to all nodes with {top}, or install it on each "
            "node (of a job: in the image of the cluster)"
        )

    def _place(self, error: BaseException) -> str:
        """The last line of the user's code on the way to an error."""
        names = {Path(file).name for file in self.code.files}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name in names]
        return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _is_no_function(found: object, name: str, module: ModuleType) -> str:
    if inspect.iscoroutinefunction(found):
        return "is async; define it without"
    if found is not None:
        return f"is no function, its type is {type(found).__name__}; name a function with one argument"
    functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
    close = nearest(name, functions)
    hint = f"; did you mean {close}?" if close else "; define it there, with one argument"
    return f"is not defined{hint}"
