"""How a model's thinking is told from what it says: by what the chat template writes before and after it.

thinking = learned_thinking(probes)     # None: the template has no place for it
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
# Templates that write no thinking know it by these: they drop it from earlier turns.
_KNOWN = [("<think>", "</think>"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("[THINK]", "[/THINK]")]

Place = Literal["before", "within", "behind"]


@dataclass(frozen=True)
class Thinking:
    """`opening` and `closing` are around it, without white space; `gap` follows."""

    opening: str
    closing: str
    gap: str | None = None
    """None: not known"""

    def after(self, prompt: str) -> Place:
        """Where a prompt has left the model: within thinking, behind it, or before it."""
        text = prompt.rstrip()
        return "within" if text.endswith(self.opening) else "behind" if text.endswith(self.closing) else "before"


def learned_thinking(probes: Probes) -> Thinking | None:
    """What this template writes around thinking; None for nothing."""
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
        if word == TOOL:  # the call's own opening stands before its name
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
    """Where the prompt alone shows it."""
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
