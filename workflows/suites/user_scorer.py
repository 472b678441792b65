"""A user's own scorer: a Python function that gets an item's record and the reply.

def score(record, reply):
    return record["price"] in reply["content"]     # a boolean or a finite number; more is better

`record` is the line of the file as it stands there; of an item with several turns, its keys but `turns`, and those of
the turn. `reply` is an assistant's message: `content`, and `tool_calls` with arguments as objects, if there are any.
"""

import copy
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from models.chat.form import Message
from workflows.corpus.user_function import UserFunction

_MAX_SHOWN = 80


@dataclass(frozen=True)
class UserScorer(UserFunction):
    """The function that `scorer` of a suite names."""

    example: ClassVar[str] = "score"
    arguments: ClassVar[str] = "two arguments, the item's record and the reply"
    where: ClassVar[str] = "a scorer is imported where the stage evaluate runs"
    is_scored_by_loss: ClassVar[bool] = False

    def score(self, expected: Any, reply: Message) -> float:
        """The function's number for the record `expected`; raises what it raises, and TypeError for no number."""
        # Copies: what a scorer changes must not change what the next one gets.
        found = self.function()(copy.deepcopy(expected), copy.deepcopy(reply))
        if not isinstance(found, Real | np.bool_):
            shown = repr(found)[:_MAX_SHOWN]
            raise TypeError(f"returned {shown} ({type(found).__name__}); it must return a number or a boolean")
        return float(found)
