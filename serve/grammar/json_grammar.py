"""Grammars of replies: checked before an engine gets them, and followed token by token.

grammars = Grammars(tokenizer, engine.vocab_size, end_token_ids)
request = GenerationRequest(prompt_ids, 100, grammar=grammars.of({"type": "object"}))

A reasoning model thinks first: the rest of the reply follows the schema, or is the call.
"""

import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import numpy as np
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from serve.engines.base import Unfollowable
from serve.grammar.call_grammar import Rules
from serve.grammar.compile import compiled, tokens_of, told
from serve.grammar.process import Bounds, Setup
from serve.grammar.schema_forms import in_ascii, in_plain_form
from serve.grammar.schema_notes import rules_of
from serve.grammar.token_map import token_source
from serve.parsing.form import ReplyForm, learned_form
from serve.parsing.thinking import Place

Where = Place | Literal["alone"]
"""... or "alone": a text outside a conversation, without thinking before it"""

# llguidance creates a rule for every item of a list, and a state for every remainder of a division: 10,000 take 0.2
# s, a billion all memory of the machine.
_MAX_ITEMS = 10_000
_LARGEST_DIVISOR = 10_000
# It is converted to Lark in this process, not in the one with a time limit.
_MAX_GBNF = 8 << 10
# The number of cached compiled grammars; only small ones are cached, and few take more than 1 MB.
_MAX_KEPT, _SMALL_BYTES = 32, 4 << 20
# A reply's tokens wait for its masks, and so do all others in its batch: CPU seconds allowed in a burst, and per
# token.
_SPARE_S = 1.0
_SECONDS_PER_TOKEN = 0.01


@dataclass(frozen=True)
class Draft:
    """A grammar that is not compiled yet; its fields are those of `serve.engines.base.Grammar`."""

    lark: str
    schema: str | None
    param: str


class Grammars:
    """Grammars for one tokenizer and one form of replies."""

    def __init__(
        self, tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int], form: ReplyForm | None = None
    ) -> None:
        """`form` None: it is found from the chat template."""
        self._tokenizer = tokenizer
        self._form = form or learned_form(tokenizer)
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._names = [name for name in tokenizer.get_added_vocab() if len(name) > 1 and not name.isspace()]
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def of(self, schema: dict[str, Any], place: Place = "before") -> "JsonGrammar":
        """JSON after the thinking; `place` is the model's state after the prompt (`ReplyForm.place_after`).

        Raises ValueError for a schema that is invalid, has undefined references, or takes too much to follow.
        """
        return self.compiled(self.json(schema, place))

    def of_call(self, functions: dict[str, dict[str, Any]], place: Place = "before") -> "JsonGrammar":
        """One call of one of these functions; the values are the schemas of their arguments."""
        return self.compiled(self.call(functions, place))

    def json(self, schema: dict[str, Any], place: Where = "before", param: str = "response_format") -> Draft:
        """The draft that `of` compiles; raises ValueError."""
        schema = in_plain_form(rules_of(schema))
        _check_counts(schema)
        rules = Rules(self._form.marks)
        lark = self._around(rules, rules.json(schema), place)
        must_think = place == "within" or (self._form.writes_channels and place != "alone")
        text = json.dumps(schema, ensure_ascii=False)
        # An engine that follows only schemas would write a constant "<think>" as the token of that name.
        has_token = any(name in text for name in self._names)
        return Draft(lark, None if must_think or has_token else text, param)

    def call(self, functions: dict[str, dict[str, Any]], place: Place = "before") -> Draft:
        """The draft that `of_call` compiles; raises ValueError."""
        functions = {name: in_plain_form(rules_of(schema)) for name, schema in functions.items()}
        _check_counts(functions)
        assert self._form.style is not None
        rules = Rules(self._form.marks)
        call = rules.call(self._form.style, functions, self._form.has_short_ids)
        return Draft(rules.lark(f"{self._before(rules, place, is_call=True)} {call}"), None, "tools")

    def choice(
        self, texts: Sequence[str], place: Where = "before", param: str = "structured_outputs.choice"
    ) -> Draft:
        """One of these texts."""
        rules = Rules(self._form.marks)
        body = rules.add(" | ".join(json.dumps(text, ensure_ascii=False) for text in texts))
        return Draft(self._around(rules, body, place), None, param)

    def regex(self, pattern: str, place: Where = "before", param: str = "regex") -> Draft:
        """Text that this regular expression matches completely."""
        rules = Rules(self._form.marks)
        return Draft(self._around(rules, rules.add(_lark_regex(pattern)), place), None, param)

    def lark(self, grammar: str, place: Where = "before", param: str = "grammar") -> Draft:
        """Text of a grammar in llguidance's Lark, from its rule `start`, or in GBNF, from `root`. Raises ValueError
        for invalid GBNF."""
        rules = Rules(self._form.marks)
        own = _from_gbnf(grammar) if "::=" in grammar else grammar
        return Draft(self._around(rules, rules.add(f"%lark {{\n{own}\n}}"), place), None, param)

    def compiled(self, draft: Draft, memory: int = 0) -> "JsonGrammar":
        """Compile a draft, without a time limit; serve/grammar/guard.py has checked it, and measured its `memory`.
        Raises ValueError for an invalid one."""
        start = self._kept.pop(draft.lark, None) or compiled(self._mapped, draft.lark)
        if memory <= _SMALL_BYTES:
            self._kept[draft.lark] = start
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return JsonGrammar(draft, start, self._vocab_size)

    def setup(self, bounds: Bounds, compiler: str) -> Setup:
        """The settings of the process that checks these grammars."""
        ends = tuple(sorted(self._end_token_ids))
        return Setup(self._source, self._vocab_size, ends, bounds, compiler)

    def _around(self, rules: Rules, body: str, place: Where) -> str:
        if place == "alone":
            return rules.lark(body)
        return rules.lark(f"{self._before(rules, place, is_call=False)} {body} {rules.text(self._form.tail)}")

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
        # If the template writes something before the text, the closing of the thinking includes it.
        return f"({lead} {thinking} | {words})" if words else f"({lead} {thinking})?"

    @cached_property
    def _source(self) -> str:
        return token_source(self._tokenizer)

    @cached_property
    def _mapped(self) -> Any:
        return tokens_of(self._source, self._vocab_size, self._end_token_ids)


class JsonGrammar:
    """A compiled grammar; `schema` is None if the grammar is more than a JSON schema."""

    def __init__(self, draft: Draft, start: Any, vocab_size: int) -> None:
        self.lark = draft.lark
        self.schema = draft.schema
        self.param = draft.param
        self._start = start
        self._vocab_size = vocab_size

    def start(self) -> "JsonState":
        """The state at the start of a reply."""
        return JsonState(self._start.deep_copy(), self._vocab_size)


class JsonState:
    """A reply's position in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._left_s = _SPARE_S

    def allowed(self) -> np.ndarray:
        """Whether each token of the vocabulary may come next."""
        mask = self._timed(self._matcher.compute_bitmask)
        self._left_s = min(self._left_s + _SECONDS_PER_TOKEN, _SPARE_S)
        return np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: self._vocab_size].astype(bool)

    def accept(self, token_id: int) -> None:
        """Advance by this token."""
        self._timed(self._matcher.consume_token, token_id)

    def _timed(self, work: Callable[..., Any], *given: Any) -> Any:
        began = time.thread_time()
        found = work(*given)
        self._left_s -= time.thread_time() - began
        if self._left_s < 0:
            raise Unfollowable("the format takes too much time to follow: use fewer alternatives or shorter patterns")
        if self._matcher.is_error():
            raise Unfollowable(f"the schema cannot be followed: {told(self._matcher)}")
        return found


def _from_gbnf(grammar: str) -> str:
    if len(grammar) > _MAX_GBNF:
        raise ValueError(f"a GBNF grammar (`::=`) has at most {_MAX_GBNF} characters; use Lark (`start: ...`)")
    try:
        return gbnf_to_lark(grammar)
    except (GbnfToLarkError, RecursionError) as error:
        raise ValueError(f"it has `::=`, but is not a valid GBNF grammar: {error}") from error


def _lark_regex(pattern: str) -> str:
    """The pattern in slashes, on one line, without ^ and $, which do nothing in a complete match."""
    inner = in_ascii(pattern).removeprefix("^")
    if re.search(r"(?<!\\)(\\\\)*\$$", inner):
        inner = inner[:-1]
    inner = re.sub(r"\\.|/", lambda found: found[0] if len(found[0]) > 1 else r"\/", inner, flags=re.DOTALL)
    return "/" + inner.replace("\n", "\\n") + "/"


def _check_counts(schema: Any) -> None:
    """Raise ValueError for a schema that would take llguidance too much time and memory."""
    items, divisor = 0, 1
    for rule, value in _numbers(schema):
        if rule in ("minItems", "maxItems"):
            items += max(0, math.ceil(value))
        elif rule == "multipleOf":
            divisor = math.lcm(divisor, _digits(value))
    if items > _MAX_ITEMS:
        raise ValueError(f"minItems and maxItems together exceed the limit of {_MAX_ITEMS}")
    if divisor > _LARGEST_DIVISOR:
        raise ValueError(f"multipleOf exceeds the limit of {_LARGEST_DIVISOR} after its decimal point is removed")


def _digits(number: float) -> int:
    """The significant digits as an integer: 45 for 4.5 and for 0.045."""
    return int("".join(map(str, Decimal(repr(number)).as_tuple().digits))) or 1


def _numbers(schema: Any) -> Iterator[tuple[str, float]]:
    """Every finite number in a schema, with its key."""
    parts = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for name, part in parts:
        if isinstance(name, str) and (isinstance(part, int) or (isinstance(part, float) and math.isfinite(part))):
            yield name, part
        yield from _numbers(part)
