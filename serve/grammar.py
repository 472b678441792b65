"""Replies that follow a JSON schema: checked before an engine sees them, and given to it token by token.

grammars = Grammars(tokenizer, engine.vocab_size, end_token_ids)
request = GenerationRequest(prompt_ids, 100, grammar=grammars.of({"type": "object"}))
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cached_property
from typing import Any

import llguidance
import llguidance.hf
import numpy as np

from serve.engines.base import Unfollowable
from serve.tools import CallStyle

# Small models fill a reply with white space where they may.
_ONE_SPACE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}

# llguidance writes out a rule for every item of a list, and a state for every remainder of a division: 10,000 take
# 0.2 s, a billion all memory of the machine.
_MOST_ITEMS = 10_000
_LARGEST_DIVISOR = 10_000


class Grammars:
    """Grammars over one tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids

    def of(self, schema: dict[str, Any]) -> "JsonGrammar":
        """Raises ValueError for a schema that is none, refers to what it has not, or takes too much to follow."""
        _check_counts(schema)
        return self._compiled(f"start: %json {json.dumps({**schema, 'x-guidance': _ONE_SPACE})}", json.dumps(schema))

    def of_call(self, style: CallStyle, functions: dict[str, dict[str, Any]]) -> "JsonGrammar":
        """One call of one of these functions, by their names; the values are the schemas of their arguments."""
        _check_counts(functions)
        rules = []
        for name, parameters in functions.items():
            call: dict[str, Any] = {
                "type": "object",
                "properties": {style.name_key: {"const": name}, style.arguments_key: parameters},
                "required": [style.name_key, style.arguments_key],
                "additionalProperties": False,
                **{name: parameters[name] for name in ("$defs", "definitions") if name in parameters},
                "x-guidance": _ONE_SPACE,
            }
            rules.append(f"%json {json.dumps(call)}")
        opening, closing = (json.dumps(text, ensure_ascii=False) for text in (style.opening, style.closing))
        return self._compiled(f"start: {opening} call {closing}\ncall: {' | '.join(rules)}", None)

    def _compiled(self, lark: str, schema: str | None) -> "JsonGrammar":
        start = llguidance.LLMatcher(self._mapped, lark, log_level=0)
        if not start.is_error():
            start.compute_bitmask()  # too much to follow shows here
        if start.is_error():
            raise ValueError(_told(start))
        return JsonGrammar(lark, schema, start, self._vocab_size)

    @cached_property
    def _mapped(self) -> Any:
        """Takes a second with a large vocabulary."""
        ends = sorted(self._end_token_ids)
        return llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=ends)


class JsonGrammar:
    """What can be followed; `schema` is None where it is more than JSON."""

    def __init__(self, lark: str, schema: str | None, start: Any, vocab_size: int) -> None:
        self.lark = lark
        self.schema = schema
        self._start = start
        self._vocab_size = vocab_size

    def start(self) -> "JsonState":
        """Where a reply begins."""
        return JsonState(self._start.deep_copy(), self._vocab_size)


class JsonState:
    """How far a reply has come."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> np.ndarray:
        """For every token of the vocabulary: may it come next?"""
        mask = self._matcher.compute_bitmask()
        self._raise_error()
        return np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: self._vocab_size].astype(bool)

    def accept(self, token_id: int) -> None:
        """It came next."""
        self._matcher.consume_token(token_id)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise Unfollowable(f"the schema cannot be followed: {_told(self._matcher)}")


def _told(matcher: Any) -> str:
    """Its error in one line; after an empty line or a mark come details of its own, and of what was made here."""
    text: str = matcher.get_error()
    said = re.split(r"\n\n|\n *1 \||<state>|<backtrace>", text)[0]
    return " ".join(said.replace("NoExtensionBias", "no value at all follows it").split())[:300]


def _check_counts(schema: Any) -> None:
    """Raise ValueError for a schema that llguidance would take all time and memory for."""
    items, divisor = 0, 1
    for rule, value in _numbers(schema):
        if rule in ("minItems", "maxItems"):
            items += max(0, math.ceil(value))
        elif rule == "multipleOf":
            divisor = math.lcm(divisor, _digits(value))
    if items > _MOST_ITEMS:
        raise ValueError(f"minItems and maxItems together are more than {_MOST_ITEMS}, which are not followed")
    if divisor > _LARGEST_DIVISOR:
        raise ValueError(f"what multipleOf asks for is beyond {_LARGEST_DIVISOR}, which is not followed")


def _digits(number: float) -> int:
    """4.5 as 45, and so is 0.045."""
    return int("".join(map(str, Decimal(repr(number)).as_tuple().digits))) or 1


def _numbers(schema: Any) -> Iterator[tuple[str, float]]:
    """Every finite number in it that stands under a name."""
    parts = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for name, part in parts:
        if isinstance(name, str) and (isinstance(part, int) or (isinstance(part, float) and math.isfinite(part))):
            yield name, part
        yield from _numbers(part)
