"""A user's own function, by its dotted path, with its code where that is beside the pipeline file.

keep = UserFilter.of("/folder/mymodule:keep")      # the pipeline file's folder, where the module may be
keep.function()                                    # import it here: raises StageFailed
keep.code.write(working_dir)                       # for a job: mymodule.py beside the job's pipeline file
"""

import inspect
import re
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self, cast

from models.errors import nearest
from workflows.cluster.errors import describe_error
from workflows.corpus.user_code import UserCode
from workflows.stage import StageFailed

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

Function = Callable[..., Any]
# By the function's key; of each process.
_IMPORTED: dict[str, Function] = {}


@dataclass(frozen=True)
class UserFunction:
    """A function by its dotted path, and its code where that is beside the pipeline file."""

    name: str
    code: UserCode
    field: str
    """that names it, dotted"""

    example: ClassVar[str]
    arguments: ClassVar[str]
    """as in `one argument`"""
    where: ClassVar[str]
    """on which nodes it is imported, as a sentence"""

    @classmethod
    def of(cls, path: str, field: str) -> Self:
        """The function `path`: mymodule:name, after the folder where the module is unless it is installed; raises
        StageFailed.
        """
        folder, _, name = path.rpartition("/")
        if not _NAME.fullmatch(name):
            raise StageFailed(
                f"{field}: got {name!r}; name a function by its module, as in mymodule:{cls.example} or "
                f"package.module:{cls.example}"
            )
        module = name.partition(":")[0]
        return cls(name, UserCode.beside(module, Path(folder), field) if folder else UserCode(), field)

    @cached_property
    def key(self) -> str:
        """Changes with the name and with the code beside the pipeline file."""
        return f"{self.name} {self.code.key}"

    def function(self) -> Function:
        """The function, imported in this process; raises StageFailed."""
        if self.key not in _IMPORTED:
            _IMPORTED[self.key] = self._import()
        return _IMPORTED[self.key]

    def place(self, error: BaseException) -> str:
        """The last line of the user's code on the way to an error, as in ` (mymodule.py:12)`."""
        names = {Path(file).name for file in self.code.files}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name in names]
        return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""

    def _import(self) -> Function:
        module, _, name = self.name.partition(":")
        try:
            found = self.code.module(module)
        except (Exception, SystemExit) as error:
            raise StageFailed(
                f"{self.field}: {module} cannot be imported on {socket.gethostname()}: "
                f"{describe_error(error)}{self.place(error)}; {self._fix(error)}"
            ) from None
        function = getattr(found, name, None)
        if not callable(function) or inspect.iscoroutinefunction(function):
            wrong = self._is_no_function(function, name, found)
            raise StageFailed(f"{self.field}: {name} of {self._file(found)} {wrong}")
        return cast(Function, function)

    def _file(self, module: ModuleType) -> str:
        """The file of a module: of the user's own the one that they edit, not its copy."""
        file = str(getattr(module, "__file__", None) or module.__name__)
        return next((f"{own} beside the pipeline file" for own in self.code.files if file.endswith(f"/{own}")), file)

    def _fix(self, error: BaseException) -> str:
        """How to have the module, or what it imports, on every node."""
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        top = self.name.partition(":")[0].partition(".")[0]
        if lacking is None:
            return self.where
        if lacking.partition(".")[0] == top and not self.code.files:
            return (
                f"put {top}.py or the package {top}/ beside the pipeline file, and it is sent to all nodes, or "
                "install it on each node"
            )
        return (
            f"put {lacking} beside the pipeline file, and it is sent to all nodes with {top}, or install it on each "
            "node (of a job: in the image of the cluster)"
        )

    def _is_no_function(self, found: object, name: str, module: ModuleType) -> str:
        if inspect.iscoroutinefunction(found):
            return "is async; define it without"
        if found is not None:
            return f"is no function, its type is {type(found).__name__}; name a function with {self.arguments}"
        functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        close = nearest(name, functions)
        hint = f"; did you mean {close}?" if close else f"; define it there, with {self.arguments}"
        return f"is not defined{hint}"
