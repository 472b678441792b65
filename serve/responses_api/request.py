"""The body of POST /v1/responses, OpenAI's Responses API; serve/responses_api/translation.py
converts it to a chat.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.base import LIST_TAG, TEXT_TAG, Off, RequestModel, one_or_many
from serve.protocol.hints import Hints, Metadata
from serve.protocol.requests import Stop, TemplateVariables, TokenIds
from serve.responses_api.items import InputItem
from serve.responses_api.tools import AllowedTools, AnyTool, ChosenFunction, TextOptions, ToolChoice

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]

_NOT_HERE = {
    "store": "Nothing is stored here; remove it, or send false",
    "previous_response_id": "Nothing is stored here; send the whole conversation in input",
    "conversation": "Nothing is stored here; send the whole conversation in input",
    "background": "Nothing is stored here for later; remove it, and use stream for long replies",
    "prompt": "No prompts are stored here; send the text as instructions or input",
}


class Reasoning(RequestModel):
    """Reasoning settings."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """Like `reasoning_effort` in chat completions."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """Both are accepted and ignored: the answer contains the thinking itself."""
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None
    """Both are accepted and ignored: the chat template decides about earlier thinking."""


class ResponseStreamOptions(RequestModel):
    """Options of the stream."""

    include_obfuscation: bool | None = None
    """Taken and not used."""


class ResponsesRequest(Hints):
    """The body of POST /v1/responses; null means the default."""

    model: Annotated[str, Field(min_length=1)]
    input: Annotated[
        Annotated[str, Field(min_length=1), Tag(TEXT_TAG)]
        | Annotated[list[InputItem], Field(min_length=1, max_length=4096, fail_fast=True), Tag(LIST_TAG)],
        one_or_many("Input should be a string or a list of items"),
    ]
    """The user's message, or the conversation so far."""
    instructions: str | None = None
    """A system message before the input."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of generated tokens, including thinking."""
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """For tools that OpenAI's servers run: accepted and ignored, since there are none."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Default 1; 0 always takes the most likely token."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    include: Annotated[list[Includable], Field(max_length=64)] | None = None
    """Only the first of these has an effect; the others concern features that do not exist here."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Only with `message.output_text.logprobs` in `include`."""
    tools: Annotated[list[AnyTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    """Default: auto if the request has tools."""
    parallel_tool_calls: bool | None = None
    """False: only the first tool call of a reply counts."""
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """auto: a conversation that is too long loses its oldest turns."""
    metadata: Metadata | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: Off | None = None
    background: Off | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    """Nothing is stored."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    knowledge: bool | None = None
    """These nine are not in OpenAI's Responses API; they are as in chat completions."""

    @field_validator(*_NOT_HERE, mode="before")
    @classmethod
    def _is_not_here(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None or value is False:
            return value
        raise PydanticCustomError("conflict", _NOT_HERE[str(info.field_name)])

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and LOGPROBS not in (info.data.get("include") or ()):
            raise PydanticCustomError(
                "conflict", "Only a request with message.output_text.logprobs in include may have top_logprobs"
            )
        return value

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, value: Any, info: ValidationInfo) -> Any:
        there = {tool.name for tool in info.data.get("tools") or []}
        if value in (None, "none", "auto"):
            return value
        if not there:
            raise PydanticCustomError("conflict", "There are no tools to choose from")
        named = value.tools if isinstance(value, AllowedTools) else [value]
        for each in named:
            if isinstance(each, ChosenFunction) and each.name not in there:
                raise PydanticCustomError("conflict", "No such tool is in tools")
        return value

    def has_logprobs(self) -> bool:
        """Whether log-probabilities are requested."""
        return LOGPROBS in (self.include or ())
