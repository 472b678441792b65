"""Test one family of chat models: conversations of each kind and random ones, compared with the reference."""

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from family_checks import Expected, Sample, Unwritable, learned_in
from family_endpoint import Endpoint, Refusal, meant
from family_list import Family
from family_talks import CELLS, Kinds, Talk, Talks

from models.chat import ChatTemplateError, EncodedConversation, encode_conversation, encode_prompt, end_token_ids
from models.chat.samples import encoder_of
from models.packing import pack_trees
from models.trees import tree_of

NEEDLESSLY = "needlessly"
ONE_BY_ONE = "one call a turn"
EXACT, REFUSED, DIFFERENT = "exact", "refused", "different"
_VARIABLE = re.compile(r"(?<=message )\d+|\(['\"].*['\"]\)(?=;)")
_ROW = 8  # number of conversations in a packed row


@dataclass
class Found:
    """The outcome of a family."""

    cells: dict[str, tuple[str, str]] = field(default_factory=dict)
    """exact, refused or different, and the message"""
    exact: int = 0
    """differences in random conversations"""
    replies: int = 0
    misread: int = 0
    """number of these replies that the endpoint parses differently"""
    refusals: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    ways: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Trial:
    """One family's tokenizer and template, and the reference for them."""

    def __init__(self, family: Family, tokenizer: Any) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.expected = Expected(family, tokenizer)
        self.endpoint = Endpoint(tokenizer)
        self.found = Found()
        self._row: list[tuple[Talk, EncodedConversation, list[Sample]]] = []

    def cell(self, talk: Talk) -> tuple[str, str]:
        """The outcome of a conversation."""
        before = len(self.found.differences)
        if sentence := self.add(talk):
            return (DIFFERENT, self.found.differences[-1]) if len(self.found.differences) > before else (
                REFUSED, sentence)  # fmt: skip
        taken = self._row[-1][0]
        self.compare_row()
        if len(self.found.differences) > before:
            return DIFFERENT, self.found.differences[-1]
        return (EXACT if taken is talk else f"{EXACT}, {ONE_BY_ONE}"), ""

    def add(self, talk: Talk) -> str:
        """Encode a conversation and compare its prompts; returns the message if it is refused, or should be."""
        messages, tools = talk
        try:
            talk, samples, reason = *self._expected(talk), ""
        except Unwritable as error:
            samples, reason = [], str(error)
        try:
            encoded = encode_conversation(self.tokenizer, messages, tools=tools)
        except ChatTemplateError as error:
            return str(error) if reason else f"{NEEDLESSLY}: {error}"
        if reason:
            return self._differs(talk, f"learned, but {reason}")
        self._compare_prompts(talk, samples)
        self._row.append((talk, encoded, samples))
        if len(self._row) == _ROW:
            self.compare_row()
        return ""

    def _expected(self, talk: Talk) -> tuple[Talk, list[Sample]]:
        """The samples of the conversation, unchanged or with one call per turn; raises Unwritable."""
        messages, tools = talk
        try:
            return talk, self.expected.samples(messages, tools)
        except Unwritable:
            single = _one_by_one(messages)
            if len(single) == len(messages):
                raise
            return (single, tools), self.expected.samples(single, tools)

    def _compare_prompts(self, talk: Talk, samples: list[Sample]) -> None:
        messages, tools = talk
        learned = [n for n, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("train", True)]
        has_calls = tools is not None or any("tool_calls" in turn for turn in messages)
        for number, (prompt, reply) in zip(learned, samples, strict=True):
            if not number:
                continue
            read = (
                encode_prompt(self.tokenizer, messages[:number], tools)
                if has_calls and self.endpoint.form.style is None
                else self.endpoint.prompt(messages[:number], tools)
            )
            if tuple(read) != prompt:
                self._differs(talk, f"message {number} is asked for after {self._ending(read)}, not "
                                    f"{self._ending(prompt)}")  # fmt: skip
            ends = self.expected_ends()
            if reply[-1] not in ends or any(token in ends for token in reply[:-1]):
                self._differs(talk, f"message {number} has its end elsewhere: {self._ending(reply)}")
            self.found.replies += 1
            is_readable = tools is not None and self.endpoint.form.style is not None
            if is_readable or "tool_calls" not in messages[number]:
                self._compare_reading(messages[number], prompt, reply, tools)

    def _compare_reading(self, message: Any, prompt: Any, reply: Any, tools: Any) -> None:
        read = self.endpoint.read(prompt, reply, tools)
        wanted = meant(self.family, message)
        # Tokenizers like SentencePiece write a space as this letter.
        if read != wanted and _spaced(read) != _spaced(wanted):
            self.found.misread += 1
            logging.debug("misread %s: %s, not %s", self.family.name, read, wanted)

    def expected_ends(self) -> set[int]:
        """The ids of the family's end tokens."""
        return set(self.tokenizer.convert_tokens_to_ids([*self.family.ends, self.tokenizer.eos_token]))

    def compare_row(self) -> None:
        """Pack the waiting conversations, and compare the tokens that each target can attend to."""
        row = [(talk, encoded, samples) for talk, encoded, samples in self._row if encoded.input_ids]
        self.found.exact += len(self._row) - len(row)
        self._row = []
        if not row:
            return
        packed = learned_in(pack_trees([tree_of(vars(encoded)) for _, encoded, _ in row]))
        for (talk, _, samples), found in zip(row, packed, strict=True):
            wanted = {
                (*prompt, *reply[: place + 1]) for prompt, reply in samples for place in range(len(reply))
            } - {reply[:1] for prompt, reply in samples if not prompt}  # fmt: skip
            if len(found) != len(set(found)) or set(found) != wanted:
                extra, missing = set(found) - wanted, wanted - set(found)
                self._differs(talk, f"learned {[self._ending(ids) for ids in sorted(extra)[:2]]}, not "
                                    f"{[self._ending(ids) for ids in sorted(missing)[:2]]}")  # fmt: skip
            else:
                self.found.exact += 1

    def _ending(self, ids: Any) -> str:
        return repr(self.tokenizer.decode(list(ids)[-40:]))

    def _differs(self, talk: Talk, words: str) -> str:
        self.found.differences.append(words)
        if len(self.found.differences) <= 3:
            print(f"\n  {self.family.name}: {words}\n  {json.dumps(talk[0], ensure_ascii=False)}", flush=True)
        return words


def _spaced(read: dict[str, Any]) -> Any:
    texts = [read[key].replace("\u2581", " ").strip() for key in ("content", "reasoning_content")]
    return texts, json.dumps(read["calls"], sort_keys=True).replace("\\u2581", " ")


def try_cells(trial: Trial) -> None:
    """Test one conversation of each kind, the end tokens, and a call at the endpoint."""
    cells = trial.found.cells
    for name, talk in CELLS.items():
        cells[name] = trial.cell(talk)
    cells["tools at the endpoint"] = at_endpoint(trial)
    try:
        ends = end_token_ids(trial.tokenizer)
        cells["ends where it should"] = (EXACT, "") if ends == trial.expected_ends() else (
            DIFFERENT, f"ends are {sorted(ends)}, not {sorted(trial.expected_ends())}")  # fmt: skip
    except ChatTemplateError as error:
        cells["ends where it should"] = (REFUSED, str(error))
    if cells["ends where it should"][0] == DIFFERENT:
        trial.found.differences.append(cells["ends where it should"][1])
    trial.found.exact = trial.found.replies = trial.found.misread = 0


def at_endpoint(trial: Trial) -> tuple[str, str]:
    """Whether a prompt can require a call, and the endpoint parses it from the reply that transformers writes."""
    messages, tools = CELLS["call and result"]
    try:
        trial.endpoint.prompt(messages[:1], tools)
        prompt, reply = trial.expected.samples(messages, tools)[0]
        trial.endpoint.prompt(messages[:3], tools)
    except Refusal as error:
        return REFUSED, str(error)
    except Unwritable as error:
        return DIFFERENT, f"asked for, but {error}"
    read = trial.endpoint.read(prompt, reply, tools)
    if read == meant(trial.family, messages[1]):
        return EXACT, ""
    trial.found.differences.append(f"the endpoint reads {read}")
    return DIFFERENT, trial.found.differences[-1]


def kinds_of(trial: Trial) -> Kinds:
    """What the family's template supports."""
    cells = trial.found.cells
    return Kinds(
        thinks=cells["reasoning in earlier turns"][0] != REFUSED,
        calls=cells["call and result"][0] != REFUSED,
        is_parallel=cells["parallel calls"][0] != REFUSED,
    )


def try_random(trial: Trial, wanted: int) -> None:
    """Test random conversations until `wanted` are learned; every fifth may contain what the template lacks."""
    own, all_kinds = (iter(Talks(trial.family.name, kinds)) for kinds in (kinds_of(trial), Kinds()))
    refusals: Counter[str] = Counter()
    drawn = 0
    while trial.found.exact + len(trial.found.differences) < wanted and drawn < 5 * wanted + 50:
        drawn += 1
        if sentence := trial.add(next(own if drawn % 5 else all_kinds)):
            refusals[_VARIABLE.sub("...", sentence)] += 1
        if drawn % 50 == 0:
            print(
                f"\r  {trial.family.name}: {trial.found.exact} exact, {refusals.total()} refused", end="", flush=True
            )
    trial.compare_row()
    trial.found.refusals = dict(refusals.most_common())
    trial.found.ways = dict(Counter(encoder_of(trial.tokenizer)._ways.values()))


def _one_by_one(messages: Any) -> list[Any]:
    """What a user would do for a template that allows one call per turn: write each call as its own turn."""
    found: list[Any] = []
    rest = list(messages)
    while rest:
        turn = rest.pop(0)
        calls = turn.get("tool_calls", ())
        if len(calls) < 2 or len(rest) < len(calls):
            found.append(turn)
            continue
        answers = [rest.pop(0) for _ in calls]
        for number, each in enumerate(calls):
            kept = turn if not number else {"role": "assistant", "content": ""}
            marks = {"train": turn["train"]} if "train" in turn else {}
            found += [{**kept, **marks, "tool_calls": [each]}, answers[number]]
    return found
