"""The form of a model's replies, found from its chat template, and readers of such replies.

form = learned_form(tokenizer)
reader = form.reader({"weather": schema}, prompt_ids)    # None: all of the reply is text
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from models.chat.renderer import renderer_of
from models.chat.written_calls import SHORT_ID
from serve.parsing.call_reader import Call
from serve.parsing.call_style import CallStyle, NamedUnit, learned_style
from serve.parsing.channels import ChannelReader, writes_channels
from serve.parsing.marks import Marks, marked_text
from serve.parsing.probes import (
    ANSWER,
    ARGUMENTS,
    OTHER_TOOL,
    PARAMETERS,
    THOUGHT,
    TOOL,
    TOOLS,
    WORDS,
    Probes,
    calling,
)
from serve.parsing.reader import Reader, ReplyReader
from serve.parsing.thinking import Place, Thinking, learned_thinking

logger = logging.getLogger(__name__)

_PYTHON_TAG = "<|python_tag|>"
# The number of tokens at the end of a prompt that show its state.
_TAIL = 32
_FUNCTIONS = dict.fromkeys((TOOL, OTHER_TOOL), PARAMETERS)
_ODD = [{"probe_first": text, "probe_second": -2} for text in ('a "b"\n c', 'a "b" c', "a b c")]
_AROUND: list[dict[str, Any]] = [{}, {"text": WORDS}, {"thought": THOUGHT}]


@dataclass(frozen=True)
class ReplyForm:
    """`style` None: no tools. `writes_channels`: messages with headers. A reply starts with the white space `lead`;
    its text is between `words` and `tail`."""

    marks: Marks
    tokenizer: Any = field(repr=False)
    thinking: Thinking | None = None
    lead: str = ""
    words: str = ""
    tail: str = ""
    style: CallStyle | None = None
    writes_channels: bool = False
    has_short_ids: bool = False

    @property
    def thinks(self) -> bool:
        """Whether replies may contain thinking."""
        return self.thinking is not None or self.writes_channels

    @property
    def is_parallel(self) -> bool:
        """Whether a turn may contain several calls."""
        return self.style is not None and self.style.between is not None

    def reader(
        self, functions: Mapping[str, Any], prompt_ids: Sequence[int] = (), must_call: bool = False
    ) -> Reader | None:
        """A reader of the reply to this prompt; `functions` are the schemas of the functions that it may or must
        call.
        """
        functions = functions if self.style is not None else {}
        if self.writes_channels:
            return ChannelReader(self.marks, functions)
        if self.thinking is None and not self.words and not self.lead and not functions:
            return None
        is_thinking = self.place_after(prompt_ids) == "within"
        return ReplyReader(self.thinking, self.words, self.style, functions, is_thinking, must_call, self.lead)

    def place_after(self, prompt_ids: Sequence[int]) -> Place:
        """The model's state after the prompt: within its thinking, behind it, or before it."""
        if self.thinking is None or not prompt_ids:
            return "before"
        return self.thinking.after(marked_text(self.tokenizer, self.marks, prompt_ids[-_TAIL:]))

    def new_call_id(self) -> str:
        """An id that the template accepts when the call is sent back."""
        return uuid4().hex[:SHORT_ID] if self.has_short_ids else f"call_{uuid4().hex[:24]}"


def learned_form(tokenizer: Any) -> ReplyForm:
    """The form that this tokenizer's template writes, as far as parsing gives back what was written."""
    probes = Probes(tokenizer)
    form = ReplyForm(probes.marks, tokenizer)
    turn = probes.turn(ANSWER)
    if turn is not None and writes_channels(turn, probes.marks):
        form = replace(form, writes_channels=True)
    else:
        thinking = learned_thinking(probes)
        form = replace(form, thinking=thinking, words=_words(probes, thinking))
    plain = probes.reply(ANSWER)
    if plain is not None:
        form = replace(form, lead=plain[: len(plain) - len(plain.lstrip())], tail=plain.rpartition(WORDS)[2])
    if plain is not None and not _says(form, plain, WORDS):
        form = replace(form, thinking=None, words="")
    thought = probes.reply({**ANSWER, "reasoning_content": THOUGHT})
    is_written = form.thinking is not None and thought is not None and THOUGHT in thought
    if is_written and not _says(form, thought, WORDS, THOUGHT):
        logger.warning("thinking is not separated from replies: the chat template writes it in an unknown format")
        form = replace(form, thinking=None, words="")
    return _with_calls(form, probes, tokenizer)


def _words(probes: Probes, thinking: Thinking | None) -> str:
    """The template's text between the prompt and a reply's text."""
    written = (probes.reply(ANSWER) or "").partition(WORDS)[0]
    if thinking is not None and thinking.closing in written:
        written = written.rpartition(thinking.closing)[2]
    return written if written.strip() else ""


def _with_calls(form: ReplyForm, probes: Probes, tokenizer: Any) -> ReplyForm:
    style = _channel_style(probes) if form.writes_channels else learned_style(probes, form.thinking)
    if style is None:
        return form
    if _PYTHON_TAG in tokenizer.get_added_vocab() and style.is_bare:
        style = replace(style, other_marks=(probes.marks.of(_PYTHON_TAG),))
    form = replace(form, style=style)
    # The most difficult text that the template can write.
    odd = next((each for each in _ODD if probes.reply(calling(each), TOOLS) is not None), ARGUMENTS)
    tried = [form] + [replace(form, style=replace(style, follows_words=True))] * style.is_bare
    for form in tried:
        if all(_reads(form, probes, [given], **around) for given in (ARGUMENTS, odd) for around in _AROUND):
            break
    else:
        logger.warning("tools are not supported: the chat template writes calls in a format that cannot be parsed")
        return replace(form, style=None)
    assert form.style is not None
    if not _reads(form, probes, [ARGUMENTS, odd], is_needed=True):
        form = replace(form, style=replace(form.style, between=None))
    return replace(form, has_short_ids=renderer_of(tokenizer).probes.has_short_ids)


def _channel_style(probes: Probes) -> CallStyle | None:
    """The style of calls in separate messages: the text before and after the name."""
    written = probes.reply(calling(ARGUMENTS), TOOLS)
    prompt = probes.prompt(TOOLS)
    if written is None or prompt is None or TOOL not in prompt:
        return None
    opening, found, rest = written.partition(TOOL)
    middle, found_too, _ = rest.partition("{")
    return CallStyle(opening, NamedUnit(middle), None, "") if found and found_too else None


def _says(form: ReplyForm, written: str | None, words: str, thought: str = "") -> bool:
    """Whether parsing a reply gives this text and thinking."""
    reader = form.reader({})
    if written is None or reader is None:
        return written is not None and form.marks.shown(written).strip() == words
    found = _read(form, reader, written)
    return found == (thought, words)


def _reads(
    form: ReplyForm,
    probes: Probes,
    arguments: list[dict[str, Any]],
    text: str = "",
    thought: str = "",
    is_needed: bool = False,
) -> bool:
    """Whether parsing gives back calls with these arguments, if the template writes them at all."""
    written = probes.reply(calling(*arguments, text=text, thought=thought), TOOLS)
    if written is None or (thought and thought not in written):
        return not is_needed and bool(text or thought)
    reader = form.reader(_FUNCTIONS)
    assert reader is not None
    # A template may write the text beside a call as thinking, as gpt-oss's does.
    found = "".join(_read(form, reader, written))
    expected = [(name, given) for name, given in zip((TOOL, OTHER_TOOL), arguments, strict=False)]
    return found == thought + text and [_as_given(call) for call in reader.calls] == expected


def _as_given(call: Call) -> tuple[str, Any]:
    return call.name, None if call.is_cut else json.loads(call.arguments)


def _read(form: ReplyForm, reader: Reader, written: str) -> tuple[str, str]:
    """Thinking and text of a written reply; its prompt may have opened the thinking."""
    thinking = form.thinking
    if thinking and thinking.closing in written and thinking.opening not in written.partition(thinking.closing)[0]:
        written = thinking.opening + written
    parts = [*reader.push(written), *reader.finish(is_cut=False)]
    thought, said = ("".join(part.text for part in parts if part.kind == kind) for kind in ("thought", "said"))
    return form.marks.shown(thought).strip(), form.marks.shown(said).strip()
