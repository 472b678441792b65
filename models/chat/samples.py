"""Conversations to token ids: every reply after exactly the tokens of its prompt at inference.

The template renders the prompt of each reply and the reply. With most templates, the text of a whole conversation
contains all prompts and replies one after the other, and a conversation is one sequence of tokens. Others render an
earlier turn differently once later ones follow: thinking is dropped, a turn ends in another token, the system text
moves. There a conversation is a tree of pieces, in which replies share the common parts of their prompts.

Separately, n replies need n renderings of up to n messages. To make the cost proportional to the length, a
conversation is rendered once, or once per round, if that gives the same tokens; this is tested on a short
conversation of each kind.
"""

import dataclasses
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.chat.control import Tokens
from models.chat.kinds import kind_of, rounds_of, short_of_its_kind
from models.chat.renderer import Prepared, Renderer, Reply, renderer_of
from models.chat.template import ChatTemplateError

Way = Literal["whole", "rounds", "steps", "single"]


@dataclass(frozen=True)
class Sample:
    """A reply with its prompt, in tokens: the first `shared` ones are those of the conversation's own text, then
    `rest`. The reply is from `begin` to `end`, counted from the conversation's first token.
    """

    shared: int
    rest: list[int]
    begin: int
    end: int


class _NotSo(Exception):
    """This way of encoding gives other tokens for this conversation."""


class Encoder:
    """Encodes conversations with one tokenizer; remembers the right way for each kind of conversation."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._ways: dict[Any, Way] = {}
        self._seen: set[Any] = set()
        self._openings: dict[str, list[int]] = {}

    def samples(self, messages: Prepared, tools: Any, learned: Sequence[int]) -> tuple[list[int], list[Sample]]:
        """The replies in the messages numbered `learned`, and the tokens that they share."""
        kinds = tuple([kind_of(message) for message in messages])
        kept = short_of_its_kind(kinds)
        kind = (bool(tools), tuple([kinds[number] for number in kept]))
        if kind not in self._ways:
            if len(kept) == len(messages) and kind not in self._seen:
                self._seen.add(kind)  # a kind that may never come again
                return self._to_its_end(messages, tools, *self._singly(messages, tools, learned))
            self._ways[kind] = self._way_for([messages[number] for number in kept], tools)
        way = self._ways[kind]
        try:
            found = self._by_way(way, messages, tools, learned)
        except (_NotSo, ChatTemplateError):  # the template may refuse messages after the last reply
            way, found = "single", self._singly(messages, tools, learned)
        return found if way == "whole" else self._to_its_end(messages, tools, *found)

    def _to_its_end(
        self, messages: Prepared, tools: Any, base: list[int], samples: list[Sample]
    ) -> tuple[list[int], list[Sample]]:
        """Add the text after the last reply, if the conversation's text starts with the replies' tokens."""
        last, whole = samples[-1], base
        if not base:
            try:
                whole = self._renderer.encoder.encode(self._renderer.text(messages, tools)).ids
            except ChatTemplateError:
                return base, samples
        begins = last.rest == whole[last.shared : last.shared + len(last.rest)]
        if begins and (not last.shared or base):
            samples = [*samples[:-1], dataclasses.replace(last, rest=whole[last.shared :])]
        return base, samples

    def _by_way(
        self, way: Way, messages: Prepared, tools: Any, learned: Sequence[int]
    ) -> tuple[list[int], list[Sample]]:
        if way == "single":
            return self._singly(messages, tools, learned)
        if way == "whole":
            return self._whole(messages, tools, learned)
        return self._by_rounds(messages, tools, learned, by_steps=way == "steps")

    def _way_for(self, messages: Prepared, tools: Any) -> Way:
        """The fastest way that gives the same tokens as rendering each reply separately."""
        learned = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            single = self._singly(messages, tools, learned)
        except ChatTemplateError:
            return "single"  # the template refuses a reply, perhaps one that is not trained on
        expected = [(ids[:end], begin, end) for ids, begin, end in _full(*single)]
        ways: tuple[Way, ...] = ("whole", "rounds", "steps")
        for way in ways:
            try:
                found = _full(*self._by_way(way, messages, tools, learned))
            except (_NotSo, ChatTemplateError):
                continue
            if found == expected:
                return way
        return "single"

    def _singly(self, messages: Prepared, tools: Any, learned: Sequence[int]) -> tuple[list[int], list[Sample]]:
        """Each reply rendered separately."""
        return [], [self._sample(self._renderer.reply(messages, number, tools)) for number in learned]

    def _sample(self, reply: Reply) -> Sample:
        """A reply's tokens after those of its prompt, encoded as at the endpoint."""
        encode, begin = self._renderer.encoder.encode, len(reply.prompt)
        tokens = encode(reply.prompt + reply.text)
        count = tokens.before(begin)
        prompt = encode(reply.prompt).ids
        if tokens.ids[:count] == prompt:
            return Sample(0, tokens.ids, count, len(tokens.ids))
        own = encode(reply.text).ids
        return Sample(0, prompt + own, len(prompt), len(prompt) + len(own))

    def _whole(self, messages: Prepared, tools: Any, learned: Sequence[int]) -> tuple[list[int], list[Sample]]:
        """All replies taken from one text."""
        text, begins = self._renderer.marked_text(messages, tools)
        openings = self._openings_in(text, begins, messages, tools, learned)
        tokens = self._renderer.encoder.encode(text)
        spans = [self._span(text, begins, messages, number, openings, tools) for number in learned]
        self._renderer.check_whole(messages, tools, text, begins)
        return tokens.ids, [self._read_off(text, tokens, *span, is_base=True) for span in spans]

    def _openings_in(
        self, text: str, begins: list[int], messages: Prepared, tools: Any, numbers: Sequence[int]
    ) -> dict[str, str]:
        """The ends of prompts for messages of the text, by the preceding role: after a tool's result some templates
        open no turn. The text must start with the rest of such a prompt.
        """
        openings = {}
        for role, number in {messages[number - 1]["role"]: number for number in numbers if number}.items():
            prompt = self._renderer.text(messages[:number], tools, generates=True)
            if begins[number] < 0 or not text.startswith(prompt):
                raise _NotSo
            openings[role] = prompt[begins[number] :]
        return openings

    def _span(
        self, text: str, begins: list[int], messages: Prepared, number: int, openings: dict[str, str], tools: Any
    ) -> tuple[int, int]:
        """Start and end of a reply in a text of the conversation."""
        if not number:
            first = self._renderer.reply(messages, 0, tools)
            if not text.startswith(first.prompt + first.text):
                raise _NotSo
            return len(first.prompt), len(first.prompt) + len(first.text)
        opening = openings[messages[number - 1]["role"]]
        begin = begins[number] + len(opening)
        if begins[number] < 0 or not text.startswith(opening, begins[number]):
            raise _NotSo
        following = next((place for place in begins[number + 1 :] if place >= 0), len(text))
        try:
            reply = self._renderer.with_end(messages[number], text[begin:following], number, tools)
        except ChatTemplateError:
            raise _NotSo from None
        if not text.startswith(reply, begin):
            raise _NotSo
        return begin, begin + len(reply)

    def _read_off(self, text: str, tokens: Tokens, begin: int, end: int, is_base: bool = False) -> Sample:
        """A reply inside a text that is already encoded, if its prompt encoded alone has the same tokens."""
        first, last = tokens.before(begin), tokens.before(end)
        anchor = self._renderer.encoder.last_control_token(text, begin, tokens)
        expected = self._encoded(text[anchor:begin])
        if last <= first or tokens.ids[first - len(expected) : first] != expected:
            raise _NotSo
        return Sample(last, [], first, last) if is_base else Sample(0, tokens.ids[:last], first, last)

    def _by_rounds(
        self, messages: Prepared, tools: Any, learned: Sequence[int], by_steps: bool
    ) -> tuple[list[int], list[Sample]]:
        """The prompts of a round's replies taken from a text of that round and the previous one."""
        renderer = self._renderer
        text, begins = renderer.marked_text(messages, tools)
        tokens = renderer.encoder.encode(text)
        head, rounds = rounds_of(messages)
        samples, wanted = [], set(learned)
        for place, numbers in enumerate(rounds):
            asked = [number for number in numbers if number in wanted]
            if not asked:
                continue
            window = [*head, *(rounds[place - 1] if place else []), *numbers]
            window = [number for number in window if number <= asked[-1]]
            start = shared = 0
            if place >= 2:
                start = window[len(head)]
                if begins[start] < 0 or not renderer.encoder.starts_with_control_token(text, begins[start]):
                    raise _NotSo
                shared = tokens.before(begins[start])
            for sample in self._of_round(messages, tools, asked, window, start, numbers if by_steps else None):
                rest = sample.rest[: sample.end]
                samples.append(Sample(shared, rest, shared + sample.begin, shared + sample.end))
        return tokens.ids, samples

    def _of_round(
        self, messages: Prepared, tools: Any, asked: list[int], window: list[int], start: int, steps: list[int] | None
    ) -> list[Sample]:
        """Samples from message `start` on. `window`: the rendered messages; with `steps`, the round's messages, each
        reply is rendered after only the step before it.
        """
        renderer, encoder = self._renderer, self._renderer.encoder
        part = [messages[number] for number in window]
        if len(part) == 1:
            raise _NotSo
        prompt, places = renderer.marked_text(part[:-1], tools, generates=True)
        last = renderer.reply(part, len(part) - 1, tools)
        cut = places[window.index(start)] if start else 0
        if last.prompt != prompt or cut < 0 or (start and not encoder.starts_with_control_token(prompt, cut)):
            raise _NotSo
        own = prompt[cut:] + last.text
        tokens = encoder.encode(own)
        samples = []
        inner = [window.index(number) for number in asked[:-1]]
        openings = self._openings_of_round(part, tools, inner, prompt, places, is_read_off=steps is None)
        for number, place in zip(asked, inner, strict=False):
            if steps is None:
                begin, end = self._span(prompt, places, part[:-1], place, openings, tools)
                samples.append(self._read_off(own, tokens, begin - cut, end - cut))
                continue
            if places[place] < 0:
                raise _NotSo
            text = self._step(messages, tools, number, window, steps).text
            opening = openings[part[place - 1]["role"]]
            samples.append(self._put_behind(own, tokens, places[place] - cut, opening, text))
        samples.append(self._put_behind(own, tokens, len(prompt) - cut, "", last.text))
        return samples

    def _openings_of_round(
        self, part: Prepared, tools: Any, numbers: list[int], prompt: str, places: list[int], is_read_off: bool
    ) -> dict[str, str]:
        """The ends of prompts for these messages of a round, by the preceding role; taken from the round's own prompt
        if replies are.
        """
        if not numbers:
            return {}
        if is_read_off:
            return self._openings_in(prompt, places, part[:-1], tools, numbers)
        openings = {}
        for role, number in {part[number - 1]["role"]: number for number in numbers}.items():
            asked, plain = (self._renderer.text(part[:number], tools, generates) for generates in (True, False))
            if not asked.startswith(plain):
                raise _NotSo
            openings[role] = asked[len(plain) :]
        return openings

    def _step(self, messages: Prepared, tools: Any, number: int, window: list[int], steps: list[int]) -> Reply:
        """A reply after the first message of its round and the step before it, which starts with an assistant's
        message.
        """
        place = steps.index(number)
        assistants = [n for n in range(1, place) if messages[steps[n]]["role"] == "assistant"]
        before = [n for n in window if n < steps[0]]
        first = assistants[-1] if assistants else 1
        kept = [*before, steps[0], *steps[max(1, first) : place + 1]]
        part = [messages[n] for n in kept]
        return self._renderer.reply(part, len(part) - 1, tools)

    def _put_behind(self, text: str, tokens: Tokens, place: int, opening: str, reply: str) -> Sample:
        """A reply after its opening, and after the text before `place` in a text that is already encoded."""
        encoder = self._renderer.encoder
        anchor = encoder.last_control_token(text, place, tokens)
        opening, kept = text[anchor:place] + opening, tokens.before(anchor)
        both, prompt = encoder.encode(opening + reply), self._encoded(opening)
        count = both.before(len(opening))
        ids = both.ids if both.ids[:count] == prompt else [*prompt, *encoder.encode(reply).ids]
        return Sample(0, [*tokens.ids[:kept], *ids], kept + len(prompt), kept + len(ids))

    def _encoded(self, piece: str) -> list[int]:
        """Token ids of a text between a control token and a reply: mostly the same few texts."""
        if piece not in self._openings:
            if len(self._openings) > 1000:
                self._openings.clear()
            self._openings[piece] = self._renderer.encoder.encode(piece).ids
        return self._openings[piece]


def _full(base: list[int], samples: list[Sample]) -> list[tuple[list[int], int, int]]:
    return [(base[: sample.shared] + sample.rest, sample.begin, sample.end) for sample in samples]


_ENCODERS: "weakref.WeakKeyDictionary[Renderer, Encoder]" = weakref.WeakKeyDictionary()


def encoder_of(tokenizer: Any) -> Encoder:
    """The tokenizer's encoder, with what it knows about its template."""
    renderer = renderer_of(tokenizer)
    if renderer not in _ENCODERS:
        _ENCODERS[renderer] = Encoder(renderer)
    return _ENCODERS[renderer]
