"""Requests of OpenAI's API, as far as this endpoint serves it; serve/protocol/responses.py has the answers.

serve/protocol/messages.py has messages and tools, serve/protocol/formats.py response formats, serve/protocol/hints.py
fields that are accepted and ignored.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, FailFast, Field, Tag, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from serve.protocol.base import BRANCH, LIST_TAG, TEXT_TAG, Off, One, RequestModel, one_or_many, type_branch
from serve.protocol.formats import ResponseFormat, StructuredOutputs, one_kind
from serve.protocol.further import KINDS, FurtherFields
from serve.protocol.hints import ChatHints
from serve.protocol.messages import AllowedToolsChoice, ChatMessage, Function, FunctionName, NamedTool, Tool

MAX_CHOICES = 128  # OpenAI's
MAX_COMPARED = 16
MAX_PROMPTS = 64


class StreamOptions(RequestModel):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    """The last event carries the usage."""
    continuous_usage_stats: bool | None = None
    """Not in OpenAI's API: with `include_usage`, every event carries the usage so far."""
    include_obfuscation: bool | None = None
    """Accepted and ignored."""


StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[
    Annotated[StopString, Tag(TEXT_TAG)] | Annotated[list[StopString], Field(max_length=4), Tag(LIST_TAG)],
    one_or_many("Input should be a string or a list of up to 4 strings"),
]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)]


Penalty = Annotated[float, Field(ge=-2, le=2)]

# At most ten digits: Python refuses to parse numbers with thousands of them.
_TOKEN_NAME = r"^(0|[1-9][0-9]{0,9})$"
TokenName = Annotated[str, WithJsonSchema({"type": "string", "pattern": _TOKEN_NAME})]


class GenerationFields(FurtherFields):
    """Fields of both chat and text completions; null means the default, as in OpenAI's API."""

    model: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Default 1; 0 always takes the most likely token."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Not in OpenAI's API: sample from the `top_k` most likely tokens; 0, -1 and null mean all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Not in OpenAI's API: minimum probability of a token, as a share of the most likely token's."""
    presence_penalty: Penalty | None = None
    """Subtracted from the scores of tokens that the reply already contains."""
    frequency_penalty: Penalty | None = None
    """Subtracted from the scores once for each time that the reply contains the token."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] | None = None
    """Not in OpenAI's API: divides the scores of tokens in prompt and reply, and multiplies negative ones
    (Keskar et al. 2019, arXiv:1909.05858, 4.1). A smaller one would overflow float32."""
    logit_bias: (
        Annotated[
            dict[TokenName, Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024, json_schema_extra={"additionalProperties": False}),
        ]
        | None
    ) = None
    """Added to the scores of tokens, by token id."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of tokens to generate."""
    stop: Stop | None = None
    stop_token_ids: TokenIds | None = None
    """Not in OpenAI's API: these tokens also end the reply; the text omits them."""
    include_stop_str_in_output: bool | None = None
    """Not in OpenAI's API: the text includes the stop string that ended the reply."""
    ignore_eos: bool | None = None
    """Not in OpenAI's API: the model's own end tokens do not end the reply."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """Not in OpenAI's API: minimum number of tokens before an end token or stop string ends the reply."""
    structured_outputs: StructuredOutputs | None = None
    """Not in OpenAI's API: vLLM's other output formats."""
    response_format: ResponseFormat | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    """The same seed and request give the same reply from the same release on the same kind of machine. On OpenVINO in
    a precision other than fp32, concurrent requests can change the result."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Number of replies to the prompt; each uses the next seed."""

    @field_validator("logit_bias")
    @classmethod
    def _by_token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name in value or {}:
            if not re.fullmatch(_TOKEN_NAME, name):
                raise PydanticCustomError("keys", "Keys should be token ids, as in {'50256': -100}")
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_in_a_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("conflict", "Only a request with stream true may have stream_options")
        return value

    @field_validator("structured_outputs")
    @classmethod
    def _of_one_kind(cls, value: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        others = [name for name in KINDS if info.data.get(name) is not None]
        if value is not None and others:
            raise PydanticCustomError(
                "conflict", "Give either structured_outputs or {other}, not both", {"other": others[0]}
            )
        return one_kind(value)

    @field_validator("response_format")
    @classmethod
    def _one_format(cls, value: Any, info: ValidationInfo) -> Any:
        others = [name for name in ("structured_outputs", *KINDS) if info.data.get(name) is not None]
        if value is not None and others:
            raise PydanticCustomError(
                "conflict", "Give either response_format or {other}, not both", {"other": others[0]}
            )
        return value

    def stop_strings(self) -> list[str]:
        """`stop` as a list, empty when there is none."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def num_replies(self) -> int:
        """The number of replies that are generated for each prompt."""
        return self.n or 1

    def token_limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the reply, and its value in tokens."""
        return "max_tokens", self.max_tokens

    def num_logprobs(self) -> int | None:
        """The number of likely tokens to return log-probabilities of, beside the sampled one; None for no
        log-probabilities.
        """
        raise NotImplementedError

    def num_prompt_logprobs(self) -> int | None:
        """The same for the prompt's tokens."""
        return self.prompt_logprobs

    def calls_functions(self) -> bool:
        """Whether the answer has calls in their deprecated form."""
        return False


TemplateVariables = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Any], Field(max_length=64)
]


class ChatRequest(GenerationFields, ChatHints):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096), FailFast()]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The current name of `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag(TEXT_TAG)]
            | Annotated[NamedTool, Tag(BRANCH + "function")]
            | Annotated[AllowedToolsChoice, Tag(BRANCH + "allowed_tools")],
            Discriminator(
                lambda value: (
                    TEXT_TAG
                    if isinstance(value, str)
                    else type_branch(value, ("function", "allowed_tools"), "function")
                ),
                custom_error_type="tool_choice",
                custom_error_message="Input should be none, auto, required, or the name of a function",
            ),
        ]
        | None
    ) = None
    """Default: auto if the request has tools."""
    functions: Annotated[list[Function], Field(max_length=128)] | None = None
    function_call: (
        Annotated[
            Annotated[Literal["none", "auto"], Tag(TEXT_TAG)] | Annotated[FunctionName, Tag(BRANCH + "object")],
            Discriminator(
                lambda value: TEXT_TAG if isinstance(value, str) else BRANCH + "object",
                custom_error_type="function_call",
                custom_error_message="Input should be none, auto, or the name of a function",
            ),
        ]
        | None
    ) = None
    """Deprecated form of `tools` and `tool_choice`; the answer has the deprecated form too, with one call."""
    parallel_tool_calls: bool | None = None
    """False: only the first tool call of a reply counts."""
    chat_template_kwargs: TemplateVariables | None = None
    """Not in OpenAI's API: variables of the chat template, such as {"enable_thinking": false}."""
    best_of: Annotated[int, Field(ge=1, le=MAX_COMPARED)] | None = None
    """Not in OpenAI's chats: number of replies to generate; the release's discriminator scores them, and one is
    returned."""
    best_of_by: Literal["softmax", "argmax"] | None = None
    """How the reply is chosen: sampled by the softmax of the scores (the default), or the highest score."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """For chat templates with levels of reasoning; `none` turns reasoning off if the template supports it."""
    continue_final_message: bool | None = None
    """Not in OpenAI's API: the reply continues the last message, which must be the assistant's."""
    add_generation_prompt: bool | None = None
    """Not in OpenAI's API: false ends the prompt with the last message, without the start of a reply."""
    echo: bool | None = None
    """Not in OpenAI's API: with `continue_final_message`, the answer starts with the text of that message."""
    knowledge: bool | None = None
    """Not in OpenAI's API: false leaves the endpoint's own documents (`serve.knowledge`) out of the prompt."""
    documents: list[dict[str, Any]] | None = None
    """Not in OpenAI's API: documents for chat templates that support them."""
    add_special_tokens: Off | None = None
    """Not in OpenAI's API: the chat template writes the special tokens that are needed."""

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") is not None:
            raise PydanticCustomError("conflict", "Give either max_tokens or max_completion_tokens, not both")
        return value

    @field_validator("add_generation_prompt")
    @classmethod
    def _unless_it_goes_on(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("continue_final_message"):
            raise PydanticCustomError("conflict", "Should be false if continue_final_message is true")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, value: Any, info: ValidationInfo) -> Any:
        names = [tool.function.name for tool in info.data.get("tools") or []]
        if value in (None, "none", "auto"):
            return value
        if not names:
            raise PydanticCustomError("conflict", "There are no tools to choose from")
        chosen = value.allowed_tools.tools if isinstance(value, AllowedToolsChoice) else [value]
        if any(isinstance(tool, NamedTool) and tool.function.name not in names for tool in chosen):
            raise PydanticCustomError("conflict", "No such tool is in tools")
        return value

    @field_validator("functions")
    @classmethod
    def _instead_of_tools(cls, value: list[Function] | None, info: ValidationInfo) -> list[Function] | None:
        if value and info.data.get("tools"):
            raise PydanticCustomError("conflict", "Give either tools or functions, their older form, not both")
        return value

    @field_validator("function_call")
    @classmethod
    def _of_the_functions(cls, value: Any, info: ValidationInfo) -> Any:
        there = {function.name for function in info.data.get("functions") or []}
        if isinstance(value, FunctionName) and value.name not in there:
            raise PydanticCustomError("conflict", "No such function is in functions")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("conflict", "Only a request with logprobs true may have top_logprobs")
        return value

    @field_validator("best_of")
    @classmethod
    def _of_one_whole_reply(cls, value: int | None, info: ValidationInfo) -> int | None:
        if (value or 1) > 1 and info.data.get("stream"):
            raise PydanticCustomError("conflict", "Whole replies are compared: ask for best_of without stream")
        if (value or 1) > 1 and (info.data.get("n") or 1) > 1:
            raise PydanticCustomError("conflict", "Give either n or best_of, not both")
        return value

    @field_validator("best_of_by")
    @classmethod
    def _only_with_best_of(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (info.data.get("best_of") or 1) < 2:
            raise PydanticCustomError("conflict", "Only a request with best_of above 1 may have best_of_by")
        return value

    def num_replies(self) -> int:
        return max(self.n or 1, self.best_of or 1)

    def token_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().token_limit()

    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def calls_functions(self) -> bool:
        return bool(self.functions)

    def usable_tools(self) -> list[Tool]:
        """The tools that the reply may call."""
        if self.functions:
            given = [Tool(type="function", function=function) for function in self.functions]
            return [] if self.function_call == "none" else given
        tools = [] if self.tool_choice == "none" else self.tools or []
        if not isinstance(self.tool_choice, AllowedToolsChoice):
            return tools
        allowed = {tool.function.name for tool in self.tool_choice.allowed_tools.tools}
        return [tool for tool in tools if tool.function.name in allowed]

    def required_tools(self) -> list[Function]:
        """The functions of which the reply must call one; empty if it may be text."""
        functions = [tool.function for tool in self.usable_tools()]
        chosen = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.function_call
        if isinstance(chosen, FunctionName):
            return [function for function in functions if function.name == chosen.name]
        choice = self.tool_choice
        mode = choice.allowed_tools.mode if isinstance(choice, AllowedToolsChoice) else choice
        return functions if mode == "required" else []


# Only for the OpenAPI document: with these types pydantic would report an error once for each alternative.
_Prompt = Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_SEVERAL = Field(min_length=1, max_length=MAX_PROMPTS)


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


class CompletionRequest(GenerationFields):
    """The body of POST /v1/completions: one or more texts, or lists of token ids, for the model to continue."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    """The answer starts with the prompt, and `logprobs` cover its tokens too."""
    best_of: One | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    """Not supported: text after the reply."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Maximum number of tokens to generate; 0 generates none, for the log-probabilities of a prompt."""
    add_special_tokens: bool | None = None
    """Not in OpenAI's API: false omits the special tokens that the tokenizer puts before a text."""

    @field_validator("prompt", mode="plain", json_schema_input_type=_Prompt | Annotated[list[_Prompt], _SEVERAL])
    @classmethod
    def _texts_or_token_ids(cls, value: Any) -> Any:
        several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
        if len(several) <= MAX_PROMPTS and all(_is_prompt(prompt) for prompt in several):
            return value
        raise PydanticCustomError(
            "prompt", "Input should be a text, a list of token ids, or a list of up to {most} of these",
            {"most": MAX_PROMPTS},
        )  # fmt: skip

    @field_validator("best_of")
    @classmethod
    def _as_many_as_replies(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < (info.data.get("n") or 1):
            raise PydanticCustomError("conflict", "Should equal n; remove it")
        return value

    def prompts(self) -> list[str | list[int]]:
        """One or more texts or lists of token ids."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]

    def token_limit(self) -> tuple[str, int | None]:
        return "max_tokens", 16 if self.max_tokens is None else self.max_tokens

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def num_prompt_logprobs(self) -> int | None:
        asked = [self.logprobs if self.echo else None, self.prompt_logprobs]
        return max((number for number in asked if number is not None), default=None)


class TokenizeRequest(RequestModel):
    """The body of POST /tokenize (not in OpenAI's API): a text, or messages, rendered as the prompt of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    """As in chat completions."""
    add_special_tokens: bool | None = None
    """For a text, as in `/v1/completions`."""
    return_token_strs: bool | None = None
    """Return the tokens' names in the vocabulary too."""

    @field_validator("messages")
    @classmethod
    def _one_of_both(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("prompt") is not None:
            raise PydanticCustomError("conflict", "Give either prompt or messages, not both")
        return value
