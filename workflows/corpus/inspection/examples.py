"""Examples of what is wrong in a corpus, as a person reads them.

examples = FaultExamples(filesystem, corpus, paths)
[*examples.near_duplicates(found), *examples.contaminated(found), *examples.private(numbers, details)]
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from models.chat.form import Message
from models.text.private import PatternTooSlow, PrivateDetails, replaced
from workflows.corpus.inspection.tally import MAX_EXAMPLES, FaultExample
from workflows.corpus.lines import TRACEBACK
from workflows.corpus.revision.contamination import Contaminated
from workflows.corpus.revision.near_duplicates import NearDuplicates
from workflows.corpus.rows import numbers_of, place_of, reply_of
from workflows.corpus.split import LEFT_OUT, QUARANTINE, all_sides

_MAX_CHARACTERS = 600
_NOT_SHOWN = "(not shown: data.private.patterns takes too long on it)"


@dataclass(frozen=True)
class FaultExamples:
    """Reads some rows of a corpus; `details` hide private details in all of them."""

    filesystem: Any
    corpus: str
    paths: Sequence[str]
    """of the files, by the number of each source"""

    details: PrivateDetails

    def near_duplicates(self, found: NearDuplicates) -> Iterator[FaultExample]:
        """Of some clusters one that is not the longest, beside the longest; before they are left out."""
        others = found.members != found.kept
        pairs = list(zip(found.members[others].tolist(), found.kept[others].tolist(), strict=True))
        alike = found.similarity[others].tolist()
        chosen = list(
            {kept: (member, kept, share) for (member, kept), share in zip(pairs, alike, strict=True)}.values()
        )
        chosen = sorted(chosen)[:MAX_EXAMPLES]
        numbers = [number for member, kept, _ in chosen for number in (member, kept)]
        texts = self._replies(numbers) if found.are_replies else self._texts(numbers)
        for member, kept, share in chosen:
            yield FaultExample(
                fault="near_duplicate_reply" if found.are_replies else "near_duplicate",
                place=found.place(member, self.paths),
                text=texts[member],
                of=f"{found.place(kept, self.paths)} (Jaccard index {share:.2f})",
                other=texts[kept],
            )

    def contaminated(self, found: Sequence[Contaminated]) -> Iterator[FaultExample]:
        """What some of them share with a reference."""
        shown = [each for each in found if each.shown is not None][:MAX_EXAMPLES]
        for each in shown:
            before, shared, after = each.shown or ("", "", "")
            yield FaultExample(
                fault="contamination",
                place=self._place(each.number),
                text=self._hidden([f"… {before}⟦{shared}⟧{after} …"])[0],
                of=f"{each.reference} ({each.words} words, {each.share:.0%} of it)",
            )

    def with_private(self, numbers: Sequence[int]) -> Iterator[FaultExample]:
        """Conversations with their private details hidden."""
        for number, text in self._texts(numbers).items():
            yield FaultExample(fault="private", place=self._place(number), text=text)

    def flagged(self, numbers: Sequence[int]) -> Iterator[FaultExample]:
        """Conversations with entries of the word list."""
        flags = self._column(numbers, "flags")
        for number, text in self._texts(numbers).items():
            of = ", ".join(json.loads(flags[number] or "[]"))
            yield FaultExample(fault="flagged", place=self._place(number), text=text, of=of)

    def set_aside(self) -> Iterator[FaultExample]:
        """Some lines that cannot be used, and some conversations that are left out."""
        parts = all_sides(self.filesystem, self.corpus)
        for side in (QUARANTINE, LEFT_OUT):
            table = parts.head(
                MAX_EXAMPLES, columns=["source", "line", "reason", "messages"], filter=pc.field("split") == side
            )
            for number, row in zip(numbers_of(table).tolist(), table.to_pylist(), strict=True):
                text = self._hidden([row["messages"] or ""])[0]
                reason = row["reason"].partition(TRACEBACK)[0]
                fault = "quarantined" if side == QUARANTINE else "left_out"
                yield FaultExample(fault=fault, place=self._place(number), text=text, of=reason)

    def _place(self, number: int) -> str:
        source, line = place_of(number)
        return f"{self.paths[source]}:{line}"

    def _texts(self, numbers: Sequence[int]) -> dict[int, str]:
        """The beginning of each conversation, a line for each message."""
        found = self._column(numbers, "messages")
        return {number: self._written(found[number]) for number in numbers if number in found}

    def _replies(self, numbers: Sequence[int]) -> dict[int, str]:
        """The beginning of each reply."""
        places = {number: reply_of(number) for number in numbers}
        found = self._column([row for row, _ in places.values()], "messages")
        return {number: self._turns(json.loads(found[row]))[message] for number, (row, message) in places.items()}

    def _column(self, numbers: Sequence[int], name: str) -> dict[int, Any]:
        places = [place_of(number) for number in numbers]
        is_near = pc.field("source").isin([source for source, _ in places])
        is_near &= pc.field("line").isin([line for _, line in places])
        table = all_sides(self.filesystem, self.corpus).to_table(columns=["source", "line", name], filter=is_near)
        return dict(zip(numbers_of(table).tolist(), table[name].to_pylist(), strict=True))

    def _written(self, messages: str) -> str:
        try:
            turns = json.loads(messages)
        except ValueError:  # an excerpt of a line that is left out
            return self._hidden([messages])[0]
        return _short("\n".join(self._turns(turns)))

    def _turns(self, messages: Sequence[Message]) -> list[str]:
        """The beginning of each message, after its role."""
        texts = self._hidden([message["content"] for message in messages])
        return [f"{message['role']}: {text}" for message, text in zip(messages, texts, strict=True)]

    def _hidden(self, texts: Sequence[str]) -> list[str]:
        """The texts with placeholders for private details."""
        try:
            return list(map(_short, replaced(texts, self.details.find_in_conversation(texts))))
        except PatternTooSlow:  # such a line is set aside, and must not end `prepare` here
            return [_NOT_SHOWN] * len(texts)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} …"
