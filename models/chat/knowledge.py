"""Knowledge in a prompt: passages with their names, numbered, in one form for training and for the endpoint.

passages = passages_of([["Baxter", "height", "12 cm"], {"name": "returns.md", "text": "Returns take 30 days."}])
messages = with_knowledge([{"role": "user", "content": "How tall is Baxter?"}], passages)

The passages stand at the end of the system message, so all turns of a conversation share them as a prefix:

    <sources>
    [1] Baxter
    height: 12 cm
    [2] returns.md
    Returns take 30 days.
    </sources>

It has no words of a language. What the model should do with them ("name the sources that you use, as in [1]") is
for the system message to say, or for the replies in training to show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.chat.form import SYSTEM_ROLES, Fault, Message, check_text, is_blank, kind_of
from models.errors import RayconteurError

OPENS, CLOSES = "<sources>", "</sources>"
_RULE = "a text, {name, text}, or a triple of texts [head, relation, tail]"


class KnowledgeError(RayconteurError):
    """A value that is no list of passages."""


@dataclass(frozen=True)
class Passage:
    """A text that a reply may use, and the name of what it comes from; the name may be empty."""

    name: str
    text: str


def passages_of(value: Any, field: str) -> list[Passage]:
    """The passages in a record's key `field`: a text, or a list of texts, of objects with `name` and `text`, and of
    triples.

    Triples with the same head are one passage, named by the head, with a line for each relation. A passage that is
    there twice counts once. Null and an empty list are no knowledge. Raises KnowledgeError for anything else.
    """
    if value is None:
        return []
    given = [value] if isinstance(value, str | dict) else value
    if not isinstance(given, list):
        raise KnowledgeError(f"`{field}` is {kind_of(value)}; it must be a list whose entries are {_RULE}")
    passages: dict[Passage, None] = {}
    of_head: dict[str, dict[str, None]] = {}
    for number, entry in enumerate(given):
        place = f"`{field}`[{number}]" if given is value else f"`{field}`"
        passage = passage_of(entry, place)
        if isinstance(entry, list):
            # All triples of a head have the place of its first one; its lines are complete only after the loop.
            of_head.setdefault(passage.name, {})[passage.text] = None
            passage = Passage(passage.name, "")
        passages[passage] = None
    return [each if each.text else Passage(each.name, "\n".join(of_head[each.name])) for each in passages]


def passage_of(entry: Any, place: str) -> Passage:
    """One passage; of a triple, the line of its relation. Raises KnowledgeError, which names the place."""
    if isinstance(entry, str):
        return Passage("", _text(entry, place))
    if isinstance(entry, dict):
        if unknown := entry.keys() - {"name", "text"}:
            raise KnowledgeError(f"{place} has the key {min(unknown)!r}; a passage is {_RULE}")
        name = entry.get("name")
        return Passage(
            "" if name is None else _line(name, f"{place}.name"), _text(entry.get("text"), f"{place}.text")
        )
    if isinstance(entry, list) and len(entry) == 3:
        head, relation, tail = (_line(part, f"{place}[{number}]") for number, part in enumerate(entry))
        return Passage(head, f"{relation}: {tail}")
    found = f"a list of {len(entry)}" if isinstance(entry, list) else kind_of(entry)
    raise KnowledgeError(f"{place} is {found}; a passage is {_RULE}")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or is_blank(value):
        found = "empty" if isinstance(value, str) else kind_of(value)
        raise KnowledgeError(f"{place} is {found}; it must be a text with words")
    try:
        check_text(value, place)
    except Fault as fault:
        raise KnowledgeError(f"{place} {fault.words}") from None
    return value.strip()


def _line(value: Any, place: str) -> str:
    """A text on one line."""
    return " ".join(_text(value, place).split())


def with_knowledge(messages: Sequence[Message], passages: Sequence[Passage]) -> list[Message]:
    """Messages in normal form, with the passages at the end of the system message, or as one; the same messages if
    there are no passages. Passage `n` has the number n + 1.
    """
    if not passages:
        return list(messages)
    sources = written(passages)
    if not messages or messages[0]["role"] not in SYSTEM_ROLES:
        return [{"role": "system", "content": sources}, *messages]
    first = messages[0].copy()
    first["content"] = "\n\n".join(text for text in (first["content"].rstrip(), sources) if text)
    return [first, *messages[1:]]


def written(passages: Sequence[Passage]) -> str:
    """The passages as they stand in a prompt."""
    lines = [
        f"[{number}] {passage.name}\n{passage.text}" if passage.name else f"[{number}] {passage.text}"
        for number, passage in enumerate(passages, start=1)
    ]
    return "\n".join([OPENS, *lines, CLOSES])
