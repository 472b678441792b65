"""The interface of a scorer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from models.chat.form import Message


@dataclass(frozen=True)
class Scorer(ABC):
    """Gives a reply a score from 0 (wrong) to 1 (right)."""

    normalize: bool = True
    """whether texts are compared without regard to case, white space and Unicode's compatible characters"""

    is_scored_by_loss: ClassVar[bool] = False
    """whether a model's loss of a given reply is the score; `score` then raises TypeError"""

    @abstractmethod
    def read(self, value: Any) -> Any:
        """What an item expects, as plain JSON, from the value of its key; raises ValueError with the rule."""

    @abstractmethod
    def score(self, expected: Any, reply: Message) -> float:
        """The score, in [0, 1], of a reply of which `read` has given `expected`."""
