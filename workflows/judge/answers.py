"""The form of a judge's answer: how it is asked for, and how it is read.

form = AnswerForm("pairwise", criteria)
form.read('{"reason": "A has the price.", "winner": "A"}')      # PairAnswer("first", "A has the price.")

Endpoints that support `response_format` are asked for JSON, others for a last line; both are read strictly.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PLACES = {"A": "first", "B": "second", "tie": "tie"}
_WORST, _BEST = 1, 5
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n```\Z", re.DOTALL)
_LINE = re.compile(r"\A\**(?:VERDICT|SCORES):\s*(.+?)\**\Z")


@dataclass(frozen=True)
class PairAnswer:
    """Which of two replies is better, by their places in the question."""

    winner: str
    """`first`, `second` or `tie`"""
    reason: str


@dataclass(frozen=True)
class RubricAnswer:
    """Scores of one reply."""

    scores: Mapping[str, int]
    reason: str

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer in one mode."""

    mode: str
    criteria: Sequence[str]

    def instruction(self, as_json: bool) -> str:
        """The end of a question."""
        if as_json:
            return f"Answer with one JSON object and nothing else: {self._example}"
        if self.mode == "pairwise":
            line = "VERDICT: A, VERDICT: B, or VERDICT: tie"
        else:
            line = "SCORES: " + ", ".join(f"{name}=<{_WORST} to {_BEST}>" for name in self.criteria)
        return f"Give your reason in a few sentences. Then end with a line that has exactly this form:\n{line}"

    def again(self, as_json: bool) -> str:
        """What is said to an answer that could not be read."""
        return f"That answer does not have the form that was asked for. {self.instruction(as_json)}"

    @property
    def response_format(self) -> dict[str, Any]:
        """The JSON schema for the request."""
        schema = {
            "type": "object",
            "properties": {"reason": {"type": "string"}, **self._result_schema},
            "required": ["reason", *self._result_schema],
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}

    def read(self, text: str) -> PairAnswer | RubricAnswer | None:
        """The answer in a judge's reply; None if it does not have the form."""
        text = text.rpartition("</think>")[2].strip()
        fenced = _FENCE.match(text)
        try:
            found = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return self._of_last_line(text)
        return self._of_json(found)

    @property
    def _example(self) -> str:
        if self.mode == "pairwise":
            return '{"reason": "<a few sentences>", "winner": "A" or "B" or "tie"}'
        scores = ", ".join(f'"{name}": <{_WORST} to {_BEST}>' for name in self.criteria)
        return f'{{"reason": "<a few sentences>", "scores": {{{scores}}}}}'

    @property
    def _result_schema(self) -> dict[str, Any]:
        if self.mode == "pairwise":
            return {"winner": {"type": "string", "enum": [*_PLACES]}}
        number = {"type": "integer", "enum": [*range(_WORST, _BEST + 1)]}
        scores = {
            "type": "object",
            "properties": dict.fromkeys(self.criteria, number),
            "required": [*self.criteria],
            "additionalProperties": False,
        }
        return {"scores": scores}

    def _of_json(self, found: Any) -> PairAnswer | RubricAnswer | None:
        if not isinstance(found, dict):
            return None
        reason = found.get("reason", "")
        result = found.get("winner" if self.mode == "pairwise" else "scores")
        return self._answer(result, reason) if isinstance(reason, str) else None

    def _of_last_line(self, text: str) -> PairAnswer | RubricAnswer | None:
        before, _, last = text.rpartition("\n")
        found = _LINE.match(last.strip())
        if found is None:
            return None
        if self.mode == "pairwise":
            return self._answer(found[1], before.strip())
        parts = [part.partition("=") for part in found[1].split(",")]
        scores = {name.strip(): int(value) for name, _, value in parts if re.fullmatch(r"\s*[0-9]\s*", value)}
        return self._answer(scores if len(scores) == len(parts) else None, before.strip())

    def _answer(self, result: Any, reason: str) -> PairAnswer | RubricAnswer | None:
        if self.mode == "pairwise":
            return PairAnswer(_PLACES[result], reason) if isinstance(result, str) and result in _PLACES else None
        if not isinstance(result, dict) or result.keys() != {*self.criteria}:
            return None
        # type() and not isinstance(): true is an int too.
        if not all(type(value) is int and _WORST <= value <= _BEST for value in result.values()):
            return None
        return RubricAnswer(result, reason)
