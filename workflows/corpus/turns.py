"""Convert a list of turns in any common notation to messages with `role` and `content`.

turns = turns_of([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "conversations")
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from models.chat.form import Message, is_blank, kind_of, read_json
from models.chat.turn import SPEAKERS
from workflows.corpus.errors import UnusableLine
from workflows.corpus.raw import RawObject

FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "train")
_SPEAKERS = ("role", "from", "speaker", "sender", "author")
_TEXTS = ("content", "value", "text", "utterance", "message")
_SPEAKER_SET = frozenset(_SPEAKERS)
_SHAREGPT = {"from", "value"}
_OTHER = frozenset(_SPEAKERS + _TEXTS) - {"role", "content"}
# Keys of a turn that contains a question and its answer.
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"),
          ("query", "response"), ("prompt", "response"), ("user", "bot"))  # fmt: skip
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
_NO_FIELDS: Mapping[str, str] = {}


def turns_of(value: Any, name: str, fields: Mapping[str, str] = _NO_FIELDS) -> list[Any]:
    """The messages in the key `name` of a record, not yet checked; raises UnusableLine if it has no list of turns.

    Turns are objects with a speaker and a text under common names; pairs of a question and its answer; or one object
    with a list of speakers and a list of texts. All of these may be JSON or Python text, as in CSV files. `fields`
    maps our names of a turn's keys (`FIELDS`) to the file's.
    """
    if isinstance(value, str):
        value = _read(value, name)
    if isinstance(value, dict):
        value = _rows_of(value, name)
    if not isinstance(value, list):
        raise UnusableLine(f"`{name}` must be a list of turns, and is {kind_of(value)}")
    renames = [(ours, fields[ours]) for ours in FIELDS if ours in fields]
    turns: list[Any] = []
    for index, turn in enumerate(value):
        if type(turn) is dict and not renames and (len(turn) == 2 or _OTHER.isdisjoint(turn)) and "role" in turn:
            turns.append(turn if "content" in turn else _spoken(turn, index, name))
        elif type(turn) is dict and len(turn) == 2 and not renames and turn.keys() == _SHAREGPT:
            speaker = turn["from"]
            role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
            turns.append({"role": role, "content": turn["value"]})
        else:
            turns += _turns_at(turn, index, name, renames)
    return turns


def is_turns(value: Any) -> bool:
    """Whether it is a list of turns, and not another list."""
    return isinstance(value, list) and value != [] and all(map(_is_turn, value))


def written_turns(text: str) -> list[Any] | None:
    """The turns in a text: a JSON list, or the format of the HH-RLHF data."""
    if _LIST_OF_OBJECTS.match(text):
        try:
            found = _read(text, "")
        except ValueError:
            return None
        return found if is_turns(found) else None
    if "\n\nAssistant:" in text and text.lstrip().startswith("Human:"):
        return _hh_turns(text)
    return None


def _hh_turns(text: str) -> list[Message]:
    _, *pieces = _HH_TURN.split(text)
    turns: list[Message] = [
        {"role": role, "content": said.strip()} for role, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    if turns[-1]["role"] == "Assistant" and not turns[-1]["content"]:
        turns.pop()  # a prompt that ends with the opening of the reply
    return turns


def written_value(text: str) -> Any:
    """The value of a text in JSON or in Python syntax, as pandas writes a list to a CSV file; raises ValueError with
    the reason if it is neither.
    """
    try:
        return read_json(text)
    except ValueError as error:
        reason = error
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise reason from None


def _read(text: str, name: str) -> Any:
    try:
        return written_value(text)
    except ValueError as error:
        raise UnusableLine(f"`{name}` is a text, and {error}; it must be a list of turns") from None


def _rows_of(value: RawObject, name: str) -> list[RawObject]:
    """Convert a table's turns, {"role": [...], "content": [...]}, to one object per turn."""
    columns = [column for column in value.values() if isinstance(column, list)]
    if len(columns) < len(value) or len({len(column) for column in columns}) != 1:
        raise UnusableLine(
            f"`{name}` must be a list of turns, and is an object with {', '.join(map(str, list(value)[:8]))}"
        )
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and not _SPEAKER_SET.isdisjoint(turn)


def _turns_at(turn: Any, index: int, name: str, renames: list[tuple[str, str]]) -> list[Any]:
    if isinstance(turn, str) and turn.lstrip().startswith("{"):
        turn = _read(turn, name)
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(it, str | None) for it in turn):
        return _question_and_answer(*turn)
    if isinstance(turn, str):
        raise UnusableLine(
            f"turn {index} of `{name}` is text without a speaker; write turns as "
            '{"role": "user", "content": ...} and {"role": "assistant", "content": ...}'
        )
    if not isinstance(turn, dict):
        raise UnusableLine(
            f"turn {index} of `{name}` is {kind_of(turn)}, not an object with a role and a text, nor a pair of texts "
            "(a question and its answer)"
        )
    for ours, theirs in renames:
        if theirs in turn:
            others = {"role": _SPEAKERS, "content": _TEXTS}.get(ours, (ours,))
            turn = {**{key: it for key, it in turn.items() if key not in (*others, theirs)}, ours: turn[theirs]}
    if not _is_turn(turn):
        pair = next((pair for pair in _PAIRS if pair[0] in turn and pair[1] in turn), None)
        if pair is not None:
            system = [{"role": "system", "content": turn["system"]}] if turn.get("system") else []
            return [*system, *_question_and_answer(turn[pair[0]], turn[pair[1]])]
    return [_spoken(turn, index, name)]


def _question_and_answer(question: object, answer: object) -> list[RawObject]:
    """The turns of a pair; an empty side is left out, as the first or last turn may be alone."""
    sides: list[RawObject] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [side for side in sides if side["content"] not in (None, "")]


def _spoken(turn: RawObject, index: int, name: str) -> RawObject:
    """A turn with its speaker as `role` and its text as `content`."""
    speakers = [key for key in _SPEAKERS if turn.get(key) is not None]
    if not speakers:
        raise UnusableLine(
            f"turn {index} of `{name}` has no role: none of {', '.join(_SPEAKERS)}; found {_keys(turn)}; map it in "
            "data.fields, as in {role: your_key, content: your_other_key}"
        )
    texts = [key for key in _TEXTS if turn.get(key) is not None]
    said = [value for key in texts if not (isinstance(value := turn[key], str) and is_blank(value))]
    if any(other != said[0] for other in said[1:]):
        raise UnusableLine(
            f"turn {index} of `{name}` has different texts in {' and '.join(f'`{key}`' for key in texts)}; "
            f"choose one in data.fields, as in {{content: {texts[0]}}}"
        )
    if not texts and _rest_is_unknown(turn):
        raise UnusableLine(
            f"turn {index} of `{name}` has no text: none of {', '.join(_TEXTS)}; found {_keys(turn)}; map it in "
            "data.fields, as in {content: your_key}"
        )
    made = {"role": turn[speakers[0]]}
    if texts:
        made["content"] = said[0] if said else turn[texts[0]]
    return made | {key: value for key, value in turn.items() if key not in _OTHER and key not in made}


def _rest_is_unknown(turn: RawObject) -> bool:
    """Whether the turn needs a text; calls need none."""
    return not any(turn.get(key) for key in ("tool_calls", "function_call", "content"))


def _keys(turn: RawObject) -> str:
    return ", ".join(map(str, list(turn)[:8]))
