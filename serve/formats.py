"""What a reply has to follow, of a request: its `response_format`, or the call that it has to be."""

from collections.abc import Callable
from typing import Any

from serve.errors import ApiError
from serve.protocol import ChatRequest, JsonObjectFormat, JsonSchemaFormat
from serve.replies.form import ReplyForm

_NONE = {"additionalProperties": False}
_MOST_SCHEMA_BYTES = 64 << 10


class Formats:
    """Grammars of requests to one model, whose replies are written in this form."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int], form: ReplyForm) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._form = form
        self._grammars: Any = None

    def of_chat(self, request: ChatRequest, prompt_ids: list[int]) -> Any:
        """The grammar of a reply to this prompt; None where it may be any text. Raises ApiError."""
        place = self._form.place_after(prompt_ids)
        if functions := request.required_tools():
            if request.response_format is not None:
                raise ApiError(
                    400, "response_format: a reply that has to be a tool call has no other format.", "response_format"
                )
            called = {function.name: {"type": "object", **(function.parameters or _NONE)} for function in functions}
            return self._compile("tools", lambda grammars: grammars.of_call(called, place), called)
        wanted = request.response_format
        if isinstance(wanted, JsonObjectFormat):
            any_object = {"type": "object"}
            return self._compile("response_format", lambda grammars: grammars.of(any_object, place), any_object)
        if isinstance(wanted, JsonSchemaFormat):
            schema = wanted.json_schema.schema_
            param = "response_format.json_schema.schema"
            return self._compile(param, lambda grammars: grammars.of(schema, place), schema)
        return None

    def _compile(self, param: str, make: Callable[[Any], Any], schema: Any) -> Any:
        from serve.grammar import Grammars

        if len(str(schema)) > _MOST_SCHEMA_BYTES:
            raise ApiError(400, f"{param}: at most {_MOST_SCHEMA_BYTES} characters are read.", param)
        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer, self._vocab_size, self._end_token_ids, self._form)
        try:
            return make(self._grammars)
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}.", param) from error
