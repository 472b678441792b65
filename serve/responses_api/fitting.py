"""`truncation: auto` of a Responses request: a conversation that is too long loses its oldest turns."""

from collections.abc import Sequence

from models.chat.knowledge import Passage
from serve.engines.base import GenerationRequest
from serve.protocol.errors import ApiError
from serve.protocol.requests import ChatRequest
from serve.replies.prompt import PromptEncoder
from serve.responses_api.request import ResponsesRequest
from serve.responses_api.translation import Translation


async def passages_for(encoder: PromptEncoder, chat: Translation) -> list[Passage]:
    """The passages for the prompt; raises ApiError with the Responses request's field names."""
    try:
        return await encoder.passages(chat.request)
    except ApiError as error:
        raise chat.explained(error) from error


async def encoded(
    encoder: PromptEncoder, asked: ResponsesRequest, chat: Translation, passages: Sequence[Passage] = ()
) -> tuple[ChatRequest, list[GenerationRequest]]:
    """The requested chat, or the longest end of it that fits, and its engine requests.

    Raises ApiError with the Responses request's field names.
    """
    try:
        try:
            return chat.request, await encoder.chat(chat.request, passages)
        except ApiError as error:
            if error.error.code != "context_length_exceeded" or asked.truncation != "auto":
                raise
            return await _longest_that_fits(encoder, chat, passages, error)
    except ApiError as error:
        raise chat.explained(error) from error


async def _longest_that_fits(
    encoder: PromptEncoder, chat: Translation, passages: Sequence[Passage], too_long: ApiError
) -> tuple[ChatRequest, list[GenerationRequest]]:
    """Binary search: each try encodes a prompt."""
    found = None
    starts = chat.later_turns()
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        shorter = chat.beginning_at(starts[middle])
        try:
            found = shorter, await encoder.chat(shorter, passages)
            high = middle
        except ApiError as error:
            if error.error.code != "context_length_exceeded":
                raise
            too_long, low = error, middle + 1
    if found is None:
        raise too_long
    return found
