"""Which items of suites stand in conversations, such as those that were trained on.

index = leak_index(suites)
found = find_contamination(filesystem, files, index, board)     # each.reference is the place of an item
"""

from collections.abc import Sequence

from models.text.overlap import OverlapIndex
from models.text.texts import Texts
from workflows.suites.suite import Suite


def leak_index(suites: Sequence[Suite]) -> OverlapIndex | None:
    """What users say in the items, by the items' places; None if there are no items."""
    items = [item for suite in suites for item in suite.items]
    said = [
        [message["content"] for turn in item.turns for message in turn.messages if message["role"] == "user"]
        for item in items
    ]
    asked = [(turns, item.place) for turns, item in zip(said, items, strict=True) if turns]
    return OverlapIndex.of(Texts.of([turns for turns, _ in asked]), [place for _, place in asked]) if asked else None
