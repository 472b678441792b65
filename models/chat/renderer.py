"""A tokenizer with its chat template: prompts, and single replies exactly as a model generates them.

renderer = renderer_of(tokenizer)
prompt = renderer.prompt(renderer.prepared(messages), tools)       # the prompt at the endpoint
reply = renderer.reply(renderer.prepared(messages), 3, tools)      # message 3 as the model then generates it
"""

import json
import re
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.chat.control import ControlTokens, TextEncoder
from models.chat.probes import ARGUMENTS, CALLS, CLOSED, OPENED, REASONING, TEXT, TOOL, Probes
from models.chat.template import GUARD, ChatTemplate, ChatTemplateError

Prepared = list[dict[str, Any]]
"""messages in the form that the template takes"""


@dataclass(frozen=True)
class Reply:
    """A reply as text: its prompt, and the generated text including the end token."""

    prompt: str
    text: str


def renderer_of(tokenizer: Any) -> "Renderer":
    """The tokenizer's renderer; a new one if its template or its tokens have changed."""
    template = tokenizer.chat_template
    state = (json.dumps(template, sort_keys=True), len(tokenizer), tokenizer.eos_token, end_ids_of_model(tokenizer))
    known = _RENDERERS.get(tokenizer)
    if known is None or known[0] != state:
        known = (state, Renderer(tokenizer))
        _RENDERERS[tokenizer] = known
    return known[1]


_RENDERERS: "weakref.WeakKeyDictionary[Any, tuple[Any, Renderer]]" = weakref.WeakKeyDictionary()


def end_ids_of_model(tokenizer: Any) -> tuple[int, ...]:
    """The end tokens in the model's own `generation_config.json` (`load_tokenizer`)."""
    return tuple(getattr(tokenizer, "end_ids_of_model", ()))


class Renderer:
    """Renders messages; it finds the template's properties with test messages (probes.py)."""

    def __init__(self, tokenizer: Any) -> None:
        # Not the tokenizer itself, which its renderer would keep alive forever.
        variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if token is not None}
        self.template = ChatTemplate(tokenizer.get_chat_template(), variables)
        self._for_tools = ChatTemplate(tokenizer.get_chat_template(tools=[TOOL]), variables)
        self.control = ControlTokens(tokenizer, self.template)
        self.encoder = TextEncoder(tokenizer, self.control)
        added = tokenizer.added_tokens_decoder
        given = {*end_ids_of_model(tokenizer), tokenizer.eos_token_id} - {None}
        self._given_ends = frozenset(given)
        self._named = {str(token.content): number for number, token in added.items()}
        self.probes = Probes(
            (self.template, self._for_tools),
            self.control,
            special={str(token.content) for token in added.values() if token.special},
            given_ends={str(added[number].content) for number in given if number in added},
        )

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a reply: the tokenizer's, the model's own, and the template's.

        Raises ChatTemplateError for a template that writes none.
        """
        return self._given_ends | {self._named[name] for name in self.probes.ends}

    def prepared(self, messages: Sequence[Mapping[str, Any]]) -> Prepared:
        """Messages in the form that the template takes: stripped, with guarded names of control tokens.

        White space around a message's text is removed: tokenizers merge it with the template's own, so a trained
        reply would start with another token than a generated one.
        """
        return [self._prepared(message) for message in messages]

    def _prepared(self, message: Mapping[str, Any]) -> dict[str, Any]:
        guarded = self.control.guarded
        role, text = message["role"], guarded(message["content"].strip())
        found: dict[str, Any] = {
            "role": "system" if role == "developer" and not self.probes.knows_developers else role,
            "content": [{"type": "text", "text": text}] if self.probes.wants_parts else text,
        }
        if reasoning := message.get("reasoning_content"):
            # gpt-oss reads `thinking`
            found["reasoning_content"] = found["thinking"] = guarded(reasoning.strip())
        if calls := message.get("tool_calls"):
            found["tool_calls"] = [self._call(call) for call in guarded(calls)]
            if not text:
                del found["content"]
                found |= self.probes.calling[0]
        for key in ("tool_call_id", "name"):
            if key in message:
                found[key] = guarded(message[key])
        return found

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        if not self.probes.calling[1]:
            return call
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": arguments}}

    def prompt(
        self, messages: Prepared, tools: Any = None, variables: Mapping[str, Any] | None = None, opens: bool = True
    ) -> str:
        """The text of `messages`; with `opens` also the opening of the assistant's next turn."""
        text = self._template(tools).text(messages, self.guarded_tools(tools), opens, **(variables or {}))
        self.check_whole(messages, tools, text)
        return text

    def begun(self, messages: Prepared, tools: Any = None, variables: Mapping[str, Any] | None = None) -> str:
        """The text of `messages` up to the end of the last one's text, an assistant's."""
        text = self._template(tools).text(messages, self.guarded_tools(tools), **(variables or {}))
        self.check_whole(messages[:-1], tools, text)
        words = text_of(messages[-1])
        place = text.rfind(words)
        if not words or place < 0 or "tool_calls" in messages[-1]:
            raise ChatTemplateError(
                "the last message cannot be continued: the chat template changes its text, or it has none"
            )
        return text[: place + len(words)]

    def guarded_tools(self, tools: Any) -> Any:
        """Tools with guarded names of control tokens."""
        return self.control.guarded(tools) if tools else None

    def _template(self, tools: Any) -> ChatTemplate:
        return self._for_tools if tools else self.template

    def text(self, messages: Prepared, tools: Any, generates: bool = False) -> str:
        """The template's text of `messages`; `tools` are guarded ones."""
        return self._template(tools).text(messages, tools, generates)

    def marked_text(self, messages: Prepared, tools: Any, generates: bool = False) -> tuple[str, list[int]]:
        """The same, and where each message starts in it (`models.chat.template`)."""
        return self._template(tools).marked_text(messages, tools, generates)

    def reply(self, messages: Prepared, index: int, tools: Any) -> Reply:
        """Message `index`, an assistant's, as a reply to those before it; `tools` are guarded ones.

        Raises ChatTemplateError if the template omits a part of it, or writes no end.
        """
        before, own = messages[:index], messages[index]
        if not index:
            return self._opening(own, tools)
        prompt = self.text(before, tools, generates=True)
        until = self.text(messages[: index + 1], tools)
        if until.startswith(prompt):
            written = until[len(prompt) :]
        else:
            marked, begins = self.marked_text(messages[: index + 1], tools)
            begin = begins[index] if marked == until else -1
            written = self._written(own, prompt, self.text(before, tools), until, begin)
        self.check_whole(before, tools, prompt)
        return Reply(prompt, self.with_end(own, written, index, tools))

    def _written(self, own: dict[str, Any], prompt: str, before: str, until: str, begin: int) -> str:
        """The template's text of a reply, if the whole text does not start with the prompt."""
        opening = prompt[len(before) :] if prompt.startswith(before) else None
        if begin < 0 or opening is None:
            raise ChatTemplateError(
                "the chat template renders the messages before a reply differently in a prompt and in a finished "
                "conversation, so the start of the reply cannot be found; use another one (data.chat_template)"
            )
        written = until[begin:]
        if written.startswith(opening):
            return written[len(opening) :]
        if CLOSED.search(opening) and own.get("reasoning_content"):
            raise ChatTemplateError(
                f"the chat template closes the thinking block before a reply, with {opening!r}, so it has no place "
                "for reasoning: keep it open (data.chat_template_kwargs, mostly enable_thinking: true), or set "
                "data.reasoning: text or drop"
            )
        # The prompt opens a thinking block that the template does not write into a reply.
        thinks = OPENED.search(opening)
        plain = opening[: thinks.start()] if thinks else opening
        if not thinks or not written.startswith(plain):
            raise ChatTemplateError(
                f"the chat template opens a reply with {opening!r} in a prompt, and with "
                f"{written[: len(opening)]!r} in a finished conversation; use another one (data.chat_template)"
            )
        answer = written[len(plain) :]
        if answer.startswith(f"<{thinks[1]}>"):  # followed by other white space
            return answer[len(thinks[1]) + 2 :].lstrip("\n")
        reasoning = own.get("reasoning_content", "")
        if reasoning and self.control.name.sub("", answer).count(reasoning) > text_of(own).count(reasoning):
            raise ChatTemplateError(f"the chat template opens a reply with {opening!r}, but no thinking block")
        return f"{reasoning}\n</{thinks[1]}>\n\n{answer.lstrip()}"

    def _opening(self, own: dict[str, Any], tools: Any) -> Reply:
        """A conversation's first message, an assistant's, which no endpoint generates."""
        until = self.text([own], tools)
        words = text_of(own) or own.get("reasoning_content", "")
        first = own.get("reasoning_content") or words
        for token in [None, *reversed([*self.control.name.finditer(until)])]:
            end = token.start() if token else len(until)
            if words and first in until[:end] and until[:end].rstrip().endswith(words):
                place = until.rfind(first, 0, end)
                return Reply(until[:place], self.with_end(own, until[place:], 0, tools))
        raise ChatTemplateError("the chat template changes the text of message 0, which is a reply")

    def with_end(self, own: dict[str, Any], written: str, index: int, tools: Any) -> str:
        """A reply up to its end, from the template's text that starts with it; no part may be missing."""
        if len(own) == 2 and isinstance(text := own.get("content"), str) and text:
            place = self.probes.end_of_words(written, text)
            if place:
                return written[:place]
        is_call = "tool_calls" in own
        said = self.control.name.sub("", written) if is_call else written
        for what, words, fix, count in _words_of(own):
            if (what, is_call) in self.probes.never_written or not _is_written(words, said, what, count):
                shown = words.replace(GUARD, "")[:60]
                raise ChatTemplateError(
                    f"the chat template omits {what} of message {index} from a reply ({shown!r}); {fix}"
                )
        end = self.probes.end_in(written, "" if is_call else text_of(own) or own.get("reasoning_content", ""))
        if end is not None:
            return written[:end]
        implicit = self.probes.implicit_ends[is_call]
        if implicit is None:
            raise self.probes.no_end(is_call)
        return written + implicit

    def check_whole(self, messages: Prepared, tools: Any, text: str, begins: Sequence[int] = ()) -> None:
        """Raise ChatTemplateError if the template omitted a message to the assistant, or a tool; before the
        assistant's next turn, if `begins` has the messages' positions in the text.

        It may change the assistant's own earlier turns: most templates omit their thinking.
        """
        limits = [len(text)] * len(messages)
        for index in range(len(begins) - 2, -1, -1):
            is_reply = messages[index + 1]["role"] == "assistant" and begins[index + 1] >= 0
            limits[index] = begins[index + 1] if is_reply else limits[index + 1]
        for index, message in enumerate(messages):
            role, words = message["role"], text_of(message) if message["role"] != "assistant" else ""
            # A short text may occur elsewhere by chance, so each role is tested separately.
            if index:
                is_left_out = role in self.probes.never_read
            else:
                is_left_out = role == "system" and messages[-1]["role"] in self.probes.loses_system_behind
            limit = limits[index]
            is_there = text.find(words, 0, limit) >= 0 or text.find(_as_json(words), 0, limit) >= 0
            if words and (is_left_out or not is_there):
                raise ChatTemplateError(
                    f"the chat template omits message {index} ({message['role']}), or changes its text"
                )
        for tool in tools or ():
            if not self.probes.knows_tools or tool["function"]["name"] not in text:
                raise ChatTemplateError("the chat template has no place for tools")


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a prepared message."""
    content = message.get("content")
    if isinstance(content, list):
        return str(content[0]["text"])
    return content or ""


def _words_of(own: Mapping[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """The parts of a reply that its text must contain: the name, the words, the fix if missing, and how often."""
    if text := text_of(own):
        yield TEXT, text, "it cannot write it there; use another template (data.chat_template)", 1
    if reasoning := own.get("reasoning_content"):
        yield REASONING, reasoning, "it does not support reasoning: set data.reasoning: text or drop", 1
    calls = [call["function"] for call in own.get("tool_calls", ())]
    for name, count in Counter(call["name"] for call in calls).items():
        yield CALLS, name, "it does not support them, or not this many in one turn", count
    for call in calls:
        if isinstance(call["arguments"], str):
            yield ARGUMENTS, call["arguments"], "this template cannot write them", 1
            continue
        for name, value in call["arguments"].items():
            yield ARGUMENTS, name, "this template cannot write them", 1
            if isinstance(value, str):
                yield ARGUMENTS, value, "this template cannot write them", 1


def _is_written(words: str, said: str, what: str, count: int) -> bool:
    """Whether the words are in a reply's text; arguments may be escaped in any language's way."""
    if count > 1:
        return said.count(words) >= count
    return words in said or _as_json(words) in said or (what == ARGUMENTS and _bare(words) in _bare(said))


def _bare(text: str) -> str:
    """A text without escape sequences and escaped characters."""
    kept = _ESCAPED.sub("", text)
    return "".join([letter for letter in kept if letter.isprintable()])


_ESCAPED = re.compile(r"\\+(?:[abfnrtv]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})?|['\"\s]", re.IGNORECASE)


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
