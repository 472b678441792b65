"""The conversations for families.py: one of each kind, and random ones of all kinds with unusual text."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models.chat.messages import MessageError, normal_messages

Talk = tuple[list[Any], list[Any] | None]
"""messages in normal form, and tools"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "price_of",
            "description": "The price of a thing.",
            "parameters": {
                "type": "object",
                "properties": {
                    "thing": {"type": "string", "description": "What it is."},
                    "number": {"type": "integer", "description": "How many of it."},
                    "is_new": {"type": "boolean", "description": "Whether it is new."},
                },
                "required": ["thing"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": "What is there.",
            "parameters": {"type": "object", "properties": {"places": {"type": "array", "description": "Where."}}},
        },
    },
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, thought: str = "", calls: list[Any] | None = None) -> dict[str, Any]:
    said = {"role": "assistant", "content": text, **({"reasoning_content": thought} if thought else {})}
    return {**said, "tool_calls": calls} if calls else said


def call(number: int, thing: str = "lamp") -> dict[str, Any]:
    function = {"name": "price_of", "arguments": {"thing": thing, "number": number}}
    return {"id": f"abc12345{number}", "type": "function", "function": function}


def answer(number: int, text: str = '{"crowns": 27}') -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"abc12345{number}", "name": "price_of"}


_BYE = [user("And now?"), assistant("Good bye.")]
CELLS: dict[str, Talk] = {
    "two turns": ([user("Hi there"), assistant("Hello you."), *_BYE], None),
    "system": ([{"role": "system", "content": "You sell tools."}, user("Hi"), assistant("Hello you."), *_BYE], None),
    "reasoning in earlier turns": (
        [user("Hi"), assistant("Hello you.", "I greet."), user("And now?"), assistant("Good bye.", "I leave.")],
        None,
    ),
    "call and result": ([user("Price?"), assistant("", calls=[call(1)]), answer(1), assistant("27."), *_BYE], TOOLS),
    "parallel calls": (
        [user("Prices?"), assistant("", calls=[call(1), call(2, "bulb")]), answer(1), answer(2), assistant("27."),
         *_BYE],
        TOOLS,
    ),
}  # fmt: skip

_ODD = [
    "the",
    "lamp",
    "costs",
    "27",
    "crowns,",
    "please;",
    "and",
    "two?",
    "<b>",
    "</think>",
    "<think>",
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "</s>",
    "<s>",
    "{x}",
    "{{",
    "y",
    "}}",
    "{%",
    "if",
    "%}",
    "User:",
    "Assistant:",
    "'",
    '"',
    "\\",
    "\\n",
    "assistant",
    "<end_of_turn>",
    "<start_of_turn>model",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|channel|>final<|message|>",
    "<tool_call>",
    "</tool_call>",
    "<|user|>",
    "<|observation|>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<turn|>",
    "<|tool_call_start|>[",
    "[TOOL_CALLS]",
    "ok",
    "OK",
    "0",
    "-1.5e3",
    "null",
    "é€👍🏽",
    "naïve",
    "日本語",
    "עברית",
    "ａ",
    "x²",
    "｡",
    "ẞ",
    "</parameter>",
    "<arg_value>",
    '"name":',
    "price_of",
    "```json",
    "▁",
    "Ġ",
    "</tool_response>",
    "#1",
]
_BETWEEN = (" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", "", "\r\n", "\u00a0", "\u200b", " \n")


@dataclass(frozen=True)
class Kinds:
    """What random conversations may contain, besides turns of user and assistant."""

    thinks: bool = True
    calls: bool = True
    is_parallel: bool = True
    is_odd: bool = True


class Talks:
    """Random conversations, the same for one seed."""

    def __init__(self, seed: str, kinds: Kinds) -> None:
        self._draw = random.Random(seed)
        self._kinds = kinds

    def __iter__(self) -> Iterator[Talk]:
        while True:
            messages, tools = self._talk()
            try:
                yield normal_messages(messages), tools
            except MessageError:
                continue  # such as a text of thinking alone, which no stage accepts

    def _text(self, most: int = 8) -> str:
        draw = self._draw
        words = [draw.choice(_ODD) for _ in range(draw.randint(1, most))]
        text = "".join(word + draw.choice(_BETWEEN) for word in words)
        return text if text.strip() else "ok"

    def _chance(self, share: float) -> bool:
        return self._draw.random() < share

    def _thought(self) -> str:
        return self._text() if self._kinds.thinks and self._chance(0.4) else ""

    def _arguments(self, name: str) -> dict[str, Any]:
        """Arguments by the function's schema, in any order, with or without the optional ones."""
        draw = self._draw
        values: dict[str, Any] = {"places": draw.choice([[], ["a", self._text(2)], [1, {"b": self._text(2)}]])}
        if name == "price_of":
            number, is_new = draw.choice([0, -7, 10**12]), draw.random() < 0.5
            values = {"thing": draw.choice([self._text(), self._text(2), "", "7", "null"]), "number": number,
                      "is_new": is_new}  # fmt: skip
        names = draw.sample(sorted(values), draw.randint(0, len(values)))
        return {each: values[each] for each in names}

    def _step(self, messages: list[Any]) -> None:
        """A turn with calls, and their results."""
        count = self._draw.choice([1, 1, 2, 3]) if self._kinds.is_parallel else 1
        first = self._draw.randint(0, 5)
        names = [self._draw.choice(["price_of", "price_of", "stock"]) for _ in range(count)]
        calls = [
            {
                "id": f"abc1234{first}{place}",
                "type": "function",
                "function": {"name": name, "arguments": self._arguments(name)},
            }
            for place, name in enumerate(names)
        ]
        messages.append(assistant(self._text() if self._chance(0.3) else "", self._thought(), calls))
        for made in calls:
            name = made["function"]["name"]
            messages.append({"role": "tool", "content": self._text(), "tool_call_id": made["id"], "name": name})

    def _talk(self) -> Talk:
        messages: list[Any] = []
        if self._chance(0.4):
            messages.append({"role": self._draw.choice(["system", "system", "developer"]), "content": self._text()})
        tools = TOOLS if self._kinds.calls and self._chance(0.5) else None
        if self._kinds.is_odd and self._chance(0.05):
            messages.append(assistant(self._text()))
        for number in range(self._draw.randint(1, 5)):
            if number and self._kinds.is_odd and self._chance(0.03):
                messages.append({"role": "system", "content": self._text()})
            messages.append(user(self._text()))
            for _ in range(self._draw.randint(0, 3) if tools and self._chance(0.6) else 0):
                self._step(messages)
            messages.append(assistant(self._text(), self._thought()))
            if self._chance(0.1):
                messages[-1]["train"] = False
        if self._chance(0.1):
            messages.append(user(self._text()))  # without a result
        return messages, None if self._chance(0.1) else tools  # many corpora have calls without the tools
