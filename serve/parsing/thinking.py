"""A model's thinking, recognized by the chat template's text before and after it.

thinking = learned_thinking(probes)     # None: the template does not support it
thinking.after(marked)          # "within": this prompt has opened it
"""

import re
from dataclasses import dataclass
from typing import Literal

from serve.parsing.probes import (
    ANSWER,
    ARGUMENTS,
    QUESTION,
    THOUGHT,
    TOOL,
    TOOLS,
    VARIABLES,
    WORDS,
    Probes,
    calling,
    common_start,
)

_TAG = re.compile(r"</([^<>/]+)>")
_OPENED = re.compile(r"<([\w:]+)>\s*$")
# Templates that write no thinking contain these: they remove it from earlier turns.
_KNOWN = [("<think>", "</think>"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("[THINK]", "[/THINK]")]

Place = Literal["before", "within", "behind"]


@dataclass(frozen=True)
class Thinking:
    """Thinking is between `opening` and `closing`, without white space; `gap` follows."""

    opening: str
    closing: str
    gap: str | None = None
    """None: not known"""

    def after(self, prompt: str) -> Place:
        """The model's state after a prompt: within thinking, behind it, or before it."""
        text = prompt.rstrip()
        return "within" if text.endswith(self.opening) else "behind" if text.endswith(self.closing) else "before"


def learned_thinking(probes: Probes) -> Thinking | None:
    """The template's format of thinking; None if there is none."""
    return _written(probes) or _opened(probes) or _dropped(probes)


def _written(probes: Probes) -> Thinking | None:
    thought = {**ANSWER, "reasoning_content": THOUGHT}
    for message, plain, word, tools in (
        (thought, ANSWER, WORDS, None),
        (calling(ARGUMENTS, thought=THOUGHT), calling(ARGUMENTS), TOOL, TOOLS),
    ):
        text, without = probes.turn(message, tools=tools), probes.turn(plain, tools=tools)
        if text is None or without is None or THOUGHT not in text:
            continue
        left, _, right = text.rpartition(THOUGHT)
        between, found, _ = right.partition(word)
        if not found:
            continue
        if word == TOOL:  # the call's own opening comes before its name
            opened = without[: without.rfind(TOOL)]
            shared = len(common_start([between[::-1], opened[::-1]]))
            between = between[: len(between) - shared] or between
        closing = between.strip()
        gap = between[between.rfind(closing) + len(closing) :]
        opening = _opening(probes, left, closing, tools)
        if closing and opening:
            return Thinking(opening, closing, gap)
    return None


def _opening(probes: Probes, left: str, closing: str, tools: object) -> str:
    if tag := _TAG.fullmatch(probes.marks.names(closing)):
        return probes.marks.of(f"<{tag[1]}>")
    words = str(QUESTION["content"])
    heads = [probes.prompt(tools, **variables) for variables in VARIABLES]
    earlier = probes.turn(ANSWER, [{**QUESTION, "content": "probe_next"}], tools)
    own = left.rpartition(words)[2]
    after = [head.rpartition(words)[2] for head in (*heads, earlier) if head is not None and words in head]
    return own[min((len(common_start([own, head])) for head in after), default=0) :].strip()


def _opened(probes: Probes) -> Thinking | None:
    """The format, if only the prompt shows it."""
    for variables in VARIABLES:
        prompt = probes.prompt(**variables)
        if prompt is not None and (tag := _OPENED.search(probes.marks.names(prompt[-40:]))):
            return Thinking(probes.marks.of(f"<{tag[1]}>"), probes.marks.of(f"</{tag[1]}>"))
    return None


def _dropped(probes: Probes) -> Thinking | None:
    literals = probes.literals()
    for opening, closing in _KNOWN:
        if closing in literals:
            return Thinking(probes.marks.of(opening), probes.marks.of(closing))
    return None
