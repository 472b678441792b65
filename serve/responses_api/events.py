"""Events of a streamed answer of the Responses API; `sequence_number` counts them from 0."""

from typing import Literal

from pydantic import BaseModel, RootModel

from serve.protocol.responses import TokenLogprob
from serve.responses_api.answer import OutputItem, OutputText, ReasoningText, Response


class _Event(BaseModel):
    sequence_number: int = 0
    """Set when the event is sent."""


class ResponseEvent(_Event):
    """The whole answer in its current state: at the start and at the end."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: Response


class ItemEvent(_Event):
    """An item starts, or is complete."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _PlacedEvent(_Event):
    item_id: str
    output_index: int


class PartEvent(_PlacedEvent):
    """A part of an item starts, or is complete."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputText | ReasoningText


class TextDelta(_PlacedEvent):
    """The next part of the text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(_PlacedEvent):
    """The whole text of one part."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(_PlacedEvent):
    """The next part of the thinking."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    content_index: int
    delta: str


class ReasoningDone(_PlacedEvent):
    """The whole thinking of one part."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    content_index: int
    text: str


class ArgumentsDelta(_PlacedEvent):
    """The next part of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class ArgumentsDone(_PlacedEvent):
    """All of a call's arguments."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str


class ErrorEvent(_Event):
    """An error after the start of the stream; `response.failed` follows."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None


Event = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | ErrorEvent
)


class ResponsesEvent(RootModel[Event]):
    """One event of a streamed answer of POST /v1/responses."""
