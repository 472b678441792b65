"""The format of a request's reply: a response format, or a required tool call.

draft = formats.of(request, prompt_ids)       # None: any text
grammar = await formats.compiled(draft)       # in bounded time, or ApiError
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from serve.grammar import process as grammar_process
from serve.grammar.guard import GrammarGuard
from serve.grammar.process import Bounds, Verdict
from serve.parsing.form import ReplyForm
from serve.protocol.errors import ApiError, format_queue_full
from serve.protocol.formats import JsonObjectFormat, JsonSchemaFormat
from serve.protocol.requests import ChatRequest, GenerationFields

if TYPE_CHECKING:
    from serve.grammar.json_grammar import Draft, Grammars, JsonGrammar

_NONE = {"additionalProperties": False}
_ANY_OBJECT = {"type": "object"}
_MAX_LETTERS = 64 << 10
# Size limit of a grammar: if arguments are written one by one, each repeats all definitions.
_MAX_WRITTEN = 1 << 20
_SCHEMA = "response_format.json_schema.schema"
_OBJECTS_SCHEMA = "response_format.schema"
_SIMPLER = "Use fewer rules: shorter patterns, smaller counts, fewer optional properties, or fewer alternatives"


class Formats:
    """Grammars of requests to one model with this form of replies."""

    def __init__(
        self,
        tokenizer: Any,
        vocab_size: int,
        end_token_ids: frozenset[int],
        form: ReplyForm,
        bounds: Bounds | None = None,
        compiler: str | None = None,
    ) -> None:
        """`compiler` names the function that checks grammars, which the checking process imports."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._form = form
        self._bounds = bounds or Bounds()
        self._compiler = compiler or grammar_process.COMPILER
        self._made: Grammars | None = None
        self._guard: GrammarGuard | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")

    @property
    def guard(self) -> GrammarGuard | None:
        """The process that checks grammars, once there was a first one."""
        return self._guard

    def of(self, request: GenerationFields, prompt_ids: list[int]) -> "Draft | None":
        """The grammar of a reply to this prompt; None if it may be any text. Raises ApiError."""
        place = self._form.place_after(prompt_ids)
        functions = request.required_tools() if isinstance(request, ChatRequest) else []
        if functions:
            self._check_one(request)
            called = {function.name: {"type": "object", **(function.parameters or _NONE)} for function in functions}
            return self._draft("tools", called, lambda grammars: grammars.call(called, place))
        asked = _asked_for(request)
        if asked is None:
            return None
        kind, param, wanted = asked
        where = place if isinstance(request, ChatRequest) else "alone"
        return self._draft(param, wanted, lambda grammars: getattr(grammars, kind)(wanted, where, param))

    async def compiled(self, draft: "Draft") -> "JsonGrammar":
        """The compiled grammar; raises ApiError if it is invalid or takes too much. Other requests do not wait for
        it.
        """
        loop = asyncio.get_running_loop()
        if self._guard is None:
            setup = await loop.run_in_executor(self._thread, self._grammars().setup, self._bounds, self._compiler)
            self._guard = self._guard or GrammarGuard(setup)
        verdict = await self._guard.verdict(draft.lark)
        self._check(verdict, draft.param)
        try:
            return await loop.run_in_executor(self._thread, self._grammars().compiled, draft, verdict.memory)
        except ValueError as error:
            raise ApiError(400, f"{draft.param}: {error}.", draft.param) from error

    def answers(self) -> "Future[int]":
        """A future that is done when the thread is free."""
        return self._thread.submit(int)

    def close(self) -> None:
        """End the process that checks grammars."""
        if self._guard is not None:
            self._guard.close()
        self._thread.shutdown(wait=False)

    def _check(self, verdict: Verdict, param: str) -> None:
        if verdict.error is not None:
            raise ApiError(400, f"{param}: {verdict.error}.", param)
        if verdict.excess == "queue":
            raise format_queue_full(param)
        if verdict.excess is not None:
            most = f"{verdict.seconds:.1f} s" if verdict.excess == "time" else f"{self._bounds.memory >> 20} MiB"
            raise ApiError(
                400,
                f"{param}: preparing it exceeds the {verdict.excess} limit ({most}). {_SIMPLER}.",
                param,
            )

    def _draft(self, param: str, wanted: Any, make: "Callable[[Grammars], Draft]") -> "Draft":
        if len(str(wanted)) > _MAX_LETTERS:
            raise ApiError(400, f"{param}: it is longer than {_MAX_LETTERS} characters. {_SIMPLER}.", param)
        try:
            draft = make(self._grammars())
            if len(draft.lark) > _MAX_WRITTEN:
                raise ValueError(f"its grammar is too large. {_SIMPLER}")
            return draft
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}.", param) from error
        except RecursionError:
            raise ApiError(
                400, f"{param}: it is nested too deeply. Use definitions ($defs) for its parts.", param
            ) from None

    def _grammars(self) -> "Grammars":
        from serve.grammar.json_grammar import Grammars

        if self._made is None:
            self._made = Grammars(self._tokenizer, self._vocab_size, self._end_token_ids, self._form)
        return self._made

    @staticmethod
    def _check_one(request: GenerationFields) -> None:
        for param in ("response_format", "structured_outputs"):
            wanted = getattr(request, param)
            if wanted is not None and getattr(wanted, "type", "") != "text":
                raise ApiError(400, f"{param}: a required tool call cannot have another format.", param)


def _asked_for(request: GenerationFields) -> tuple[str, str, Any] | None:
    """The requested format: the name of its method in `Grammars`, the field, and its value."""
    wanted = request.response_format
    if isinstance(wanted, JsonObjectFormat):
        any_object = wanted.schema_ is None
        return ("json", "response_format", _ANY_OBJECT) if any_object else ("json", _OBJECTS_SCHEMA, wanted.schema_)
    if isinstance(wanted, JsonSchemaFormat):
        schema = wanted.json_schema.schema_
        return "json", _SCHEMA, _ANY_OBJECT if schema is None else schema
    further = request.further_format()
    others = request.structured_outputs
    if others is None:
        return None if further is None else _named(*further)
    [name] = others.kinds()
    param = f"structured_outputs.{name}"
    if name in ("json", "json_object"):
        return "json", param, others.json_ if others.json_ is not None else _ANY_OBJECT
    return _named(param, name, getattr(others, name))


def _named(param: str, kind: str, wanted: Any) -> tuple[str, str, Any]:
    return ("lark" if kind == "grammar" else kind), param, wanted
