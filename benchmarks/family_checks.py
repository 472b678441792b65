"""The reference for families.py: samples made by transformers alone, and what packed rows let each target see.

expected = Expected(family, tokenizer).samples(messages, tools)      # (prompt ids, reply ids) of each reply
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from family_list import Family
from tokenizers import Tokenizer

from models.packing import PackedBatch

Sample = tuple[tuple[int, ...], tuple[int, ...]]
"""the prompt's tokens and the reply's"""

# Noncharacters that mark the names of control tokens in users' text, and the end of the last message.
_FROM, _WITHIN, _TO, _HERE = "\ufdd5", "\ufdd6", "\ufdd7", "\ufdd8"
_NAME = re.compile(f"{_FROM}([^{_TO}]*){_TO}")


class Unwritable(ValueError):
    """transformers refuses these messages, or drops a part of them."""


class Expected:
    """Samples from `apply_chat_template` and the tokenizer, without any of `models.chat`."""

    def __init__(self, family: Family, tokenizer: Any) -> None:
        self._family = family
        self._tokenizer = tokenizer
        source = tokenizer.chat_template
        added = [token for token in tokenizer.added_tokens_decoder.values() if len(token.content.strip()) > 1]
        names = {token.content for token in added if token.special or token.content in source}
        # The delimiters by which templates take thinking out of a reply's text, whether they are tokens or not.
        plain = {"<think>", "</think>"} - names if "</think>" in source else set()
        self._names = re.compile("|".join(re.escape(n) for n in sorted(names | plain, key=len, reverse=True)))
        self._plain = plain
        self._knows_developers = self._writes_developers()
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        self._as_text = Tokenizer.from_str(json.dumps({**backend, "added_tokens": [], "post_processor": None}))

    def samples(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> list[Sample]:
        """The samples of the supervised replies; raises Unwritable."""
        messages = self._with_system_in_question(messages)
        given = [self._given(message) for message in messages]
        marked = self._marked(tools)
        return [
            self._sample(given, messages, number, marked)
            for number, message in enumerate(messages)
            if message["role"] == "assistant" and message.get("train", True)
        ]

    def _writes_developers(self) -> bool:
        """Whether the template writes that role; otherwise a user would call it `system`."""
        try:
            text = self._text(
                [{"role": "developer", "content": "Sell."}, {"role": "user", "content": "Hi"}], None, True
            )
        except Unwritable:
            return False
        return "Sell." in text

    def _with_system_in_question(self, messages: Sequence[Any]) -> Sequence[Any]:
        """What a user would do for a template that refuses system messages, such as Gemma 2's."""
        if not self._family.system_in_question or messages[0]["role"] not in ("system", "developer"):
            return messages
        first, second, *rest = messages
        if second["role"] != "user":
            return messages
        return [{**second, "content": f"{first['content'].strip()}\n\n{second['content'].strip()}"}, *rest]

    def _given(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as a user would pass it to transformers for this model."""
        found = {key: self._marked(value) for key, value in message.items() if key != "train"}
        found["content"] = self._marked(message["content"].strip())
        if found["role"] == "developer" and not self._knows_developers:
            found["role"] = "system"
        if "reasoning_content" in found:
            found["reasoning_content"] = found["thinking"] = self._marked(message["reasoning_content"].strip())
        if "tool_calls" in found and self._family.arguments_are_text:
            found["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for call in found["tool_calls"]
            ]
        return found

    def _marked(self, value: Any) -> Any:
        """The text with the names of control tokens marked as plain text."""
        if isinstance(value, str):
            return self._names.sub(self._mark, value)
        if isinstance(value, dict):
            return {self._marked(key): self._marked(item) for key, item in value.items()}
        return [self._marked(item) for item in value] if isinstance(value, list) else value

    def _mark(self, found: re.Match[str]) -> str:
        name = found[0][0] + _WITHIN + found[0][1:]
        return name if found[0] in self._plain else _FROM + name + _TO

    def _text(self, messages: Sequence[Any], tools: Any, generates: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=generates, tokenize=False
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise Unwritable(f"transformers: {error}") from error
        assert isinstance(text, str)
        for mark in (_FROM, _WITHIN, _TO, _HERE):  # some templates write lists in Python syntax, which escapes these
            text = text.replace(f"\\u{ord(mark):04x}", mark)
        return text

    def prompt(self, messages: Sequence[Any], tools: Any) -> list[int]:
        """Token ids of messages and the opening of the next turn, from transformers."""
        text = self._text(messages, tools, generates=True)
        if _FROM in text or _WITHIN in text:
            return self._ids(text)
        found = self._tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(found)

    def _sample(self, given: list[dict[str, Any]], messages: Sequence[Any], number: int, tools: Any) -> Sample:
        if number == 0:
            whole = self._text(given[:1], tools, generates=False)
            place = whole.rfind(given[0].get("reasoning_content") or given[0]["content"])
            prompt, written = whole[:place], whole[place:]
            ids = self._ids(prompt)
        else:
            prompt = self._text(given[:number], tools, generates=True)
            written = self._written(given, number, tools)
            ids = self.prompt(given[:number], tools)
        self._check_whole(given, messages, number, tools, prompt, written)
        reply = self._up_to_end(written, is_call="tool_calls" in given[number])
        both = self._ids(prompt + reply)
        own = both[len(ids) :] if both[: len(ids)] == ids else self._ids(reply)
        return tuple(ids), tuple(own)

    def _written(self, given: list[dict[str, Any]], number: int, tools: Any) -> str:
        """The text after the opening of the reply's turn, found by a marker in the message before it."""
        before = [*given[: number - 1], {**given[number - 1], "content": given[number - 1]["content"] + _HERE}]
        opening = self._text(before, tools, generates=True).rpartition(_HERE)[2]
        whole = self._text([*before, given[number]], tools, generates=False).rpartition(_HERE)[2]
        if whole.startswith(opening):
            return whole[len(opening) :]
        # Gemma 4 ends the turn of a call with words in a prompt, but not if a reply follows.
        unended = opening.removesuffix(f"{self._family.end}\n")
        if unended != opening and whole.startswith(unended):
            return whole[len(unended) :]
        thinks = self._family.opens_thinking
        plain = opening.removesuffix(thinks)
        if not thinks or plain == opening or not whole.startswith(plain):
            raise Unwritable(f"a reply is asked for after {opening!r} and written as {whole[:40]!r}")
        return f"{given[number].get('reasoning_content', '')}\n</think>\n\n{whole[len(plain) :]}"

    def _check_whole(
        self, given: list[dict[str, Any]], messages: Sequence[Any], number: int, tools: Any, prompt: str, written: str
    ) -> None:
        """Check that the prompt has all messages and that the sample has the whole reply."""
        unique = [
            message if message["role"] == "assistant" else {**message, "content": f"said {place} there"}
            for place, message in enumerate(given[:number])
        ]
        other = self._text(unique, tools, generates=True) if number else ""
        for place, message in enumerate(given[:number]):
            if message["role"] != "assistant" and not (
                f"said {place} there" in other and _holds(prompt, message["content"])
            ):
                raise Unwritable(f"transformers leaves out what {message['role']} says")
        named = [
            {"type": "function", "function": {**tool["function"], "name": "tool_in_full"}} for tool in tools or ()
        ]
        if named and number and "tool_in_full" not in self._text(unique, named, generates=True):
            raise Unwritable("transformers leaves out the tools")
        calls = messages[number].get("tool_calls", [])
        values = [
            text for made in given[number].get("tool_calls", []) for text in _texts(made["function"]["arguments"])
        ]
        if missing := [words for words in values if not _holds(written, words)]:
            raise Unwritable(f"transformers leaves {missing[0]!r} out of the reply")
        names = [call["function"]["name"] for call in calls]
        if any(written.count(name) < names.count(name) for name in names):
            raise Unwritable("transformers leaves out calls")
        if calls:
            self._check_calls(given, number, tools)
        self._check_said(given, number, tools)

    def _check_calls(self, given: list[dict[str, Any]], number: int, tools: Any) -> None:
        """The reply's calls, renamed to names that occur nowhere else."""
        renamed = [
            {**call, "function": {**call["function"], "name": f"call_{place}_there"}}
            for place, call in enumerate(given[number]["tool_calls"])
        ]
        whole = self._text([*given[:number], {**given[number], "tool_calls": renamed}], tools, generates=False)
        if any(call["function"]["name"] not in whole for call in renamed):
            raise Unwritable("transformers leaves out calls")

    def _check_said(self, given: list[dict[str, Any]], number: int, tools: Any) -> None:
        """The reply's text and reasoning, replaced because they may also occur elsewhere."""
        words = {key: f"{key} in full" for key in ("content", "reasoning_content") if given[number].get(key)}
        if "reasoning_content" in words:
            if self._family.opens_thinking:
                del words["reasoning_content"]  # opened by the prompt
            else:
                words["thinking"] = words["reasoning_content"]
        if words:
            whole = self._text([*given[:number], {**given[number], **words}], tools, generates=False)
            if missing := [each for each in words.values() if each not in whole]:
                raise Unwritable(f"transformers leaves the {missing[0].split()[0]} out of the reply")

    def _up_to_end(self, written: str, is_call: bool) -> str:
        family = self._family
        end = (family.call_end if is_call else "") or family.end
        if family.end_is_next:
            return written + end
        if end not in written:
            raise Unwritable(f"no {end} ends the reply")
        return written[: written.index(end) + len(end)]

    def _ids(self, text: str) -> list[int]:
        """Token ids of a text; marked names are encoded as plain text."""
        ids: list[int] = []
        for place, piece in enumerate(_NAME.split(text)):
            piece = piece.replace(_WITHIN, "")
            if not piece:
                continue
            if place % 2:
                ids += _behind_newline(lambda part: list(self._as_text.encode(part).ids), piece)
            elif place:
                ids += _behind_newline(self._plain_ids, piece)
            else:
                ids += self._plain_ids(piece)
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _behind_newline(encode: Any, piece: str) -> list[int]:
    """Token ids of a piece within a text: tokenizers like Llama 2's put a space before the first piece."""
    newline, found = encode("\n"), encode("\n" + piece)
    if found[: len(newline)] == newline:
        return list(found[len(newline) :])
    return list(encode(piece))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _texts(value: Any) -> list[str]:
    """The strings in a call's arguments, with their names; or the arguments if they are one string."""
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in _texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _holds(text: str, words: str) -> bool:
    """Whether a text contains it, unchanged or escaped in any language: compares letters only."""
    return words in text or _letters(words) in _letters(text)


def _letters(text: str) -> str:
    plain = re.sub(r"\\+(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[abfnrtv])?", "", text)
    return "".join(letter for letter in plain if letter.isalnum())


def learned_in(batch: PackedBatch) -> list[list[tuple[int, ...]]]:
    """For each conversation in a packed row, its targets with the tokens that each can attend to, derived from the
    row's pieces and their prefixes.
    """
    ids = batch.input_ids[0].tolist()
    starts = [sum(batch.sequence_lengths[:place]) for place in range(len(batch.sequence_lengths))]
    prefixes = batch.prefixes or [-1] * len(starts)
    befores: list[list[int]] = []
    for piece, prefix in enumerate(prefixes):
        own = ids[starts[prefix] : starts[prefix] + batch.sequence_lengths[prefix]] if prefix >= 0 else []
        befores.append([*befores[prefix], *own] if prefix >= 0 else [])
        assert prefix < piece
    owners = [piece for piece, length in enumerate(batch.sequence_lengths) for _ in range(length)]
    found: list[list[tuple[int, ...]]] = [[] for _ in range(batch.num_sequences)]
    columns = (batch.predictors, batch.target_positions, batch.targets, batch.target_sequences)
    for predictor, place, target, number in zip(*(column.tolist() for column in columns), strict=True):
        piece = owners[predictor]
        seen = [*befores[piece], *ids[starts[piece] : predictor + 1]]
        assert int(batch.position_ids[0, place]) == len(seen)
        assert ids[place] == target
        found[number].append((*seen, target))
    return found
