"""Tool calls in the form that a chat template accepts: short ids, one call per turn.

Requests and files have arbitrary ids, and several calls in a turn. If a template does not accept them, they are
changed, in training and at the endpoint.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Turns = Sequence[Mapping[str, Any]]

SHORT_ID = 9
"""letters and digits, in Mistral's templates"""


def with_short_ids(turns: Turns) -> Turns:
    """The turns with ids of nine letters and digits; a call without an id gets one from its position."""
    found: list[Mapping[str, Any]] = []
    unnamed: list[str] = []
    for place, turn in enumerate(turns):
        if calls := turn.get("tool_calls"):
            named = [{**call, "id": short_id(call.get("id") or f"{place}.{n}")} for n, call in enumerate(calls)]
            unnamed = [new["id"] for new, call in zip(named, calls, strict=True) if not call.get("id")]
            found.append({**turn, "tool_calls": named})
        elif turn["role"] == "tool":
            own = turn.get("tool_call_id")
            name = short_id(own) if own else (unnamed.pop(0) if unnamed else short_id(str(place)))
            found.append({**turn, "tool_call_id": name})
        else:
            found.append(turn)
    return found


def short_id(call_id: str) -> str:
    """The id itself if it has this form, else one derived from it."""
    if len(call_id) == SHORT_ID and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID]


def one_call_each(turns: Turns) -> Turns:
    """The turns, with several calls of one turn split into separate turns, each followed by its result. If a result
    is missing they stay together, and the template refuses them.
    """
    found: list[Mapping[str, Any]] = []
    place = 0
    while place < len(turns):
        turn = turns[place]
        calls = turn.get("tool_calls", ())
        answers = list(turns[place + 1 : place + 1 + len(calls)])
        place += 1
        if len(calls) < 2 or len(answers) < len(calls) or any(answer["role"] != "tool" for answer in answers):
            found.append(turn)
            continue
        place += len(calls)
        without = {key: value for key, value in turn.items() if key != "reasoning_content"}
        for number, call in enumerate(calls):
            own = next((answer for answer in answers if answer.get("tool_call_id") == call.get("id")), answers[0])
            answers = [answer for answer in answers if answer is not own]
            found += [{**(turn if not number else {**without, "content": ""}), "tool_calls": [call]}, own]
    return found
