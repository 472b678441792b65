"""Messages of a request in the form in which they are learned, too; a fault is told with its message and field."""

from typing import Any

from models.chat.messages import MessageError, normal_messages
from models.chat.written_calls import one_call_each, with_short_ids
from serve.errors import ApiError
from serve.protocol import ChatMessage
from serve.replies.form import ReplyForm


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
    if form.has_short_ids:
        turns = list(with_short_ids(turns))
    return turns if form.is_parallel else list(one_call_each(turns))


_KEPT = {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"}
