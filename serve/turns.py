"""The rules of a conversation that is to be answered; a fault is told with its message and field."""

from bisect import bisect_left

from models.chat import Message, check_messages
from serve.errors import ApiError
from serve.protocol import ChatMessage


def check_turns(turns: list[ChatMessage]) -> None:
    """Raise ApiError for a conversation that cannot be answered.

    What is said follows the rules of training (`models.chat.check_messages`). An assistant's calls of tools stand
    before the reply that they are made for, and after them their answers.
    """
    said = []
    unanswered: dict[str, int] = {}  # ids of calls, with the messages that they are in
    for place, turn in enumerate(turns):
        if turn.role == "tool":
            if turn.tool_call_id not in unanswered:
                ids = ", ".join(unanswered) or "none"
                raise _fault(place, "tool_call_id", f"got {turn.tool_call_id!r}; calls without an answer are: {ids}")
            del unanswered[turn.tool_call_id]
            if turn.content is None:
                raise _fault(place, "content", "a tool's answer has none")
        elif unanswered:
            name, asked = next(iter(unanswered.items()))
            raise _fault(asked, "tool_calls", f"no message with role tool answers {name!r} before message {place}")
        elif turn.tool_calls:
            if turn.role != "assistant":
                raise _fault(place, "tool_calls", f"only the assistant makes calls, not {turn.role!r}")
            unanswered = {call.id: place for call in turn.tool_calls}
        else:
            said.append(place)
        if turn.tool_call_id is not None and turn.role != "tool":
            raise _fault(place, "tool_call_id", f"only a message with role tool has one, not {turn.role!r}")
    if unanswered:
        name, asked = next(iter(unanswered.items()))
        raise _fault(asked, "tool_calls", f"no message with role tool answers {name!r}")
    _check_said(said, [Message(role=turns[place].role, content=turns[place].text()) for place in said])
    if turns[-1].role == "assistant":
        raise _fault(len(turns) - 1, "role", "the last message is the assistant's; there is nothing to reply to")


def _check_said(places: list[int], messages: list[Message]) -> None:
    fault = _turn_fault(messages)
    if fault is not None:
        # The first n messages are faulty from some n on: that n is the faulty message.
        last = bisect_left(range(1, len(messages)), True, key=lambda n: _turn_fault(messages[:n]) is not None)
        field = "role" if messages[last]["content"].strip() else "content"
        raise _fault(places[last] if places else 0, field, fault)


def _turn_fault(messages: list[Message]) -> str | None:
    try:
        check_messages(messages)
    except ValueError as error:
        return str(error)
    return None


def _fault(place: int, field: str, words: str) -> ApiError:
    param = f"messages[{place}].{field}"
    return ApiError(400, f"{param}: {words}.", param)
