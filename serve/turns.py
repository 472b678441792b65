"""Messages of a request in the form in which they are learned, too; a fault is told with its message and field."""

import hashlib
from typing import Any

from models.chat.messages import MessageError, normal_messages
from serve.errors import ApiError
from serve.protocol import ChatMessage
from serve.replies.form import ReplyForm

_SHORT_ID = 9


def turns_of(messages: list[ChatMessage], form: ReplyForm) -> list[Any]:
    """The conversation in normal form, to be replied to; raises ApiError.

    Ids of calls that the template does not take are others. Where it has place for one call in a turn, several are
    turns of their own, each with its answer after it.
    """
    given = [message.model_dump(exclude_none=True, include=_KEPT) for message in messages]
    try:
        turns: list[Any] = list(normal_messages(given))
    except MessageError as error:
        param = "messages" if error.index is None else f"messages[{error.index}].{error.field}"
        raise ApiError(400, f"{param}: {error.text}.", param) from error
    if turns[-1]["role"] == "assistant":
        calls = turns[-1].get("tool_calls", ())
        what = (
            f"no message with role tool answers {calls[0].get('id')!r}" if calls else "there is nothing to reply to"
        )
        param = f"messages[{len(messages) - 1}].{'tool_calls' if calls else 'role'}"
        raise ApiError(400, f"{param}: the last message is the assistant's; {what}.", param)
    turns = [_with_other_ids(turn, form) for turn in turns]
    return turns if form.is_parallel else _one_call_each(turns)


_KEPT = {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"}


def _with_other_ids(turn: dict[str, Any], form: ReplyForm) -> dict[str, Any]:
    if "tool_call_id" in turn:
        return {**turn, "tool_call_id": _taken_id(turn["tool_call_id"], form)}
    if "tool_calls" in turn:
        calls = [{**call, "id": _taken_id(call["id"], form)} if "id" in call else call for call in turn["tool_calls"]]
        return {**turn, "tool_calls": calls}
    return turn


def _taken_id(call_id: str, form: ReplyForm) -> str:
    return call_id if form.takes_id(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:_SHORT_ID]


def _one_call_each(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, turn in enumerate(turns):
        calls = turn.get("tool_calls", ())
        if len(calls) > 1:
            answers = turns[place + 1 : place + 1 + len(calls)]
            for number, call in enumerate(calls):
                said = {key: value for key, value in turn.items() if key != "reasoning_content"}
                before = turn if number == 0 else {**said, "content": ""}
                own = [answer for answer in answers if answer.get("tool_call_id") == call.get("id")]
                found += [{**before, "tool_calls": [call]}, *own[:1]]
        elif turn["role"] != "tool" or not _is_placed(turn, found):
            found.append(turn)
    return found


def _is_placed(answer: dict[str, Any], found: list[dict[str, Any]]) -> bool:
    return any(answer is turn for turn in found)
