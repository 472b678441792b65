"""Which questions and items of suites stand in conversations, such as those that were trained on.

asked = AskedTexts.of({"questions.jsonl:1": "How long may I return it?"}, suites)
found = find_contamination(filesystem, files, asked.index(), board)
asked.places((each.reference, each.share) for each in found)      # of the questions and items: file:line
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from models.text.overlap import OverlapIndex
from models.text.texts import Texts
from workflows.suites.suite import Suite

# An instruction before each text, such as "Write the history section of a clinical note that summarizes this talk",
# is a run of words that all items share with all conversations, and says nothing of what is asked.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class AskedTexts:
    """What users say in questions and items, each text once: an index finds a run of words for a few owners alone."""

    by_text: Mapping[tuple[str, ...], Sequence[str]]
    """the places of each text, which is the texts of a conversation's turns"""

    @classmethod
    def of(cls, questions: Mapping[str, str], suites: Sequence[Suite]) -> "AskedTexts":
        """`questions`: by place."""
        by_text: dict[tuple[str, ...], list[str]] = {}
        for place, question in questions.items():
            by_text.setdefault((question,), []).append(place)
        for item in (item for suite in suites for item in suite.items):
            messages = [message for turn in item.turns for message in turn.messages]
            said = [message["content"] for message in messages if message["role"] == "user"]
            if said:
                by_text.setdefault(tuple(said), []).append(item.place)
        return cls(by_text)

    def index(self) -> OverlapIndex | None:
        """All texts, by numbers that `places` understands; None if there are none."""
        numbers = [str(number) for number in range(len(self.by_text))]
        return OverlapIndex.of(Texts.of(self.by_text), numbers) if numbers else None

    def places(self, found: Iterable[tuple[str, float]]) -> set[str]:
        """The places of texts that are found, by their names in the index and the shares of their words there."""
        places = list(self.by_text.values())
        return {place for number, share in found if share >= _LEAST_SHARE for place in places[int(number)]}
