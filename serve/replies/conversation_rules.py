"""Messages of a request in the normal form of training; errors name the message and the field."""

from typing import Any

from models.chat.messages import MessageError, normal_messages
from models.chat.written_calls import one_call_each
from serve.parsing.form import ReplyForm
from serve.protocol.errors import ApiError
from serve.protocol.messages import ChatMessage

_KEPT = {"role", "reasoning_content", "reasoning", "function_call", "tool_call_id", "name"}
_OF_CALLS: Any = {"id": True, "type": True, "function": {"name", "arguments"}}


def turns_of(messages: list[ChatMessage], form: ReplyForm) -> list[Any]:
    """The conversation in normal form; raises ApiError.

    If the template supports only one call per turn, several calls become separate turns, each followed by its result.
    """
    for number, message in enumerate(messages):
        if message.refusal and message.role != "assistant":
            param = f"messages[{number}].refusal"
            raise ApiError(400, f"{param}: only an assistant's message can have it; remove it, or send null.", param)
    try:
        turns: list[Any] = list(normal_messages([_given(message) for message in messages], is_asked=True))
    except MessageError as error:
        param = "messages" if error.index is None else f"messages[{error.index}].{error.field}"
        raise ApiError(400, f"{param}: {error.text}.", param) from error
    return turns if form.is_parallel else list(one_call_each(turns))


def _given(message: ChatMessage) -> dict[str, Any]:
    given = message.model_dump(exclude_none=True, include=_KEPT)
    if "function_call" in given:
        given["function_call"].pop("parsed_arguments", None)
    if message.tool_calls:
        given["tool_calls"] = [call.model_dump(exclude_none=True, include=_OF_CALLS) for call in message.tool_calls]
    if (text := message.text()) is not None:
        given["content"] = text
    return given
