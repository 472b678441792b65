"""data.filter: a user's own function, by its dotted path, that decides about each conversation.

keep = UserFilter.of("/folder/mymodule:keep")      # the pipeline file's folder, where the module may be
keep.reason(messages, tools)                       # in any process: None, or why the conversation is left out

The function gets {"messages": [...], "tools": [...] or None} and returns True to keep the conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from models.chat.form import Message
from workflows.cluster.errors import describe_error
from workflows.corpus.errors import UnusableLine
from workflows.corpus.user_function import UserFunction

FIELD = "data.filter"
_MAX_SHOWN = 80


@dataclass(frozen=True)
class UserFilter(UserFunction):
    """The function that `data.filter` names."""

    field: str = FIELD

    example: ClassVar[str] = "keep"
    arguments: ClassVar[str] = "one argument"
    where: ClassVar[str] = "a filter is imported on each node that prepares data"

    @classmethod
    def of(cls, path: str, field: str = FIELD) -> Self:
        """The filter `path`; raises StageFailed."""
        return super().of(path, field)

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
            raise UnusableLine(f"{FIELD}: {self.name} raised {describe_error(error)}{self.place(error)}") from None
        if not isinstance(found, bool | np.bool_):
            shown = repr(found)[:_MAX_SHOWN]
            raise UnusableLine(
                f"{FIELD}: {self.name} returned {shown} ({type(found).__name__}); it must return True or False"
            )
        return None if found else f"{FIELD}: {self.name} returned False"
