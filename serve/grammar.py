"""Replies that follow a JSON schema: checked before an engine sees them, and given to it token by token.

grammars = Grammars(tokenizer, engine.vocab_size, end_token_ids)
request = GenerationRequest(prompt_ids, 100, grammar=grammars.of({"type": "object"}))

A model that thinks does so before: what follows the schema, or is the call, is the rest of the reply.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cached_property
from typing import Any

import llguidance
import numpy as np

from serve.engines.base import Unfollowable
from serve.replies.call_grammar import Rules
from serve.replies.form import ReplyForm, learned_form
from serve.replies.thinking import Place
from serve.replies.token_map import token_map

# llguidance writes out a rule for every item of a list, and a state for every remainder of a division: 10,000 take
# 0.2 s, a billion all memory of the machine.
_MOST_ITEMS = 10_000
_LARGEST_DIVISOR = 10_000


class Grammars:
    """Grammars over one tokenizer, of replies that are written in this form."""

    def __init__(
        self, tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int], form: ReplyForm | None = None
    ) -> None:
        """`form` is learned where it is not known yet."""
        self._tokenizer = tokenizer
        self._form = form or learned_form(tokenizer)
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids

    def of(self, schema: dict[str, Any], place: Place = "before") -> "JsonGrammar":
        """JSON, after what is thought; `place` is where the prompt leaves the model (`ReplyForm.place_after`).

        Raises ValueError for a schema that is none, refers to what it has not, or takes too much to follow.
        """
        _check_counts(schema)
        rules = Rules(self._form.marks)
        before, after = self._before(rules, place, is_call=False), rules.text(self._form.tail)
        lark = rules.lark(f"{before} {rules.json(schema)} {after}")
        must_think = place == "within" or self._form.writes_channels
        return self._compiled(lark, None if must_think else json.dumps(schema), "response_format")

    def of_call(self, functions: dict[str, dict[str, Any]], place: Place = "before") -> "JsonGrammar":
        """One call of one of these functions, by their names; the values are the schemas of their arguments."""
        _check_counts(functions)
        assert self._form.style is not None
        rules = Rules(self._form.marks)
        call = rules.call(self._form.style, functions, self._form.has_short_ids)
        return self._compiled(rules.lark(f"{self._before(rules, place, is_call=True)} {call}"), None, "tools")

    def _before(self, rules: Rules, place: Place, is_call: bool) -> str:
        form = self._form
        if form.writes_channels:
            return rules.channels(is_call)
        lead, words = rules.text(form.lead), "" if is_call else rules.text(form.words.lstrip())
        if form.thinking is None or place == "behind":
            return f"({lead})? {words}" if lead and not is_call and place == "before" else words
        thinking = rules.thinking(form.thinking, is_open=place == "within")
        if place == "within":
            return thinking
        # Where something stands before words, the end of thinking has it as well.
        return f"({lead} {thinking} | {words})" if words else f"({lead} {thinking})?"

    def _compiled(self, lark: str, schema: str | None, param: str) -> "JsonGrammar":
        start = llguidance.LLMatcher(self._mapped, lark, log_level=0)
        if not start.is_error():
            start.compute_bitmask()  # too much to follow shows here
        if start.is_error():
            raise ValueError(_told(start))
        return JsonGrammar(lark, schema, param, start, self._vocab_size)

    @cached_property
    def _mapped(self) -> Any:
        return token_map(self._tokenizer, self._vocab_size, self._end_token_ids)


class JsonGrammar:
    """What can be followed; `schema` is None where a reply cannot be JSON of it alone."""

    def __init__(self, lark: str, schema: str | None, param: str, start: Any, vocab_size: int) -> None:
        self.lark = lark
        self.schema = schema
        self.param = param
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
