"""Ask a judge about pairs of replies: pairwise in both orders, or each reply by itself."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.chat.form import Conversation
from workflows.judge.agreement import Winners
from workflows.judge.answers import AnswerForm, PairAnswer, RubricAnswer
from workflows.judge.client import JudgeClient, Question
from workflows.judge.prompt import JudgePrompt

_LAST_ANSWERS_S = 10.0
"""how long the answers to what was asked before a failure are waited for"""

_OTHER = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True)
class Pair:
    """Two replies to one conversation."""

    asked: Conversation
    first: str
    second: str


@dataclass(frozen=True)
class Judgement:
    """What the judge finds of a pair."""

    winner: str | None
    """`first`, `second` or `tie`; None without two usable answers"""
    reasons: tuple[str, ...]
    """the judge's own, or why there is no answer"""
    winners: Winners | None = None
    """pairwise: in both orders"""
    scores: tuple[RubricAnswer, RubricAnswer] | None = None
    """rubric: of both replies"""


class Judging:
    """A judge at work."""

    def __init__(self, client: JudgeClient, prompt: JudgePrompt, form: AnswerForm, on_answer: Callable[[], None]):
        self._client, self._prompt, self._form = client, prompt, form
        self._on_answer = on_answer

    async def all(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """The judgements of pairs, in their order; raises the first error as it is."""
        if not pairs:
            return []
        # The first pair alone: it shows which fields the endpoint refuses, before many requests have them.
        first = await self._judge(pairs[0])
        tasks = [asyncio.create_task(self._judge(pair)) for pair in pairs[1:]]
        try:
            if tasks:
                done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                if running:  # what they are asked is paid for: their answers are kept
                    await asyncio.wait(running, timeout=_LAST_ANSWERS_S)
                for task in done:
                    await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [first, *(task.result() for task in tasks)]

    async def _judge(self, pair: Pair) -> Judgement:
        if self._form.mode == "rubric":
            return await self._rubric(pair)
        one, why = await self._answer(self._prompt.pairwise(pair.asked, pair.first, pair.second))
        other, why_other = await self._answer(self._prompt.pairwise(pair.asked, pair.second, pair.first))
        if not isinstance(one, PairAnswer) or not isinstance(other, PairAnswer):
            return Judgement(None, _known(why, why_other))
        winners = one.winner, _OTHER[other.winner]
        return Judgement(winners[0] if winners[0] == winners[1] else "tie", (one.reason, other.reason), winners)

    async def _rubric(self, pair: Pair) -> Judgement:
        one, why = await self._answer(self._prompt.rubric(pair.asked, pair.first))
        other, why_other = await self._answer(self._prompt.rubric(pair.asked, pair.second))
        if not isinstance(one, RubricAnswer) or not isinstance(other, RubricAnswer):
            return Judgement(None, _known(why, why_other))
        winner = "tie" if one.mean == other.mean else "first" if one.mean > other.mean else "second"
        return Judgement(winner, (one.reason, other.reason), scores=(one, other))

    async def _answer(self, prompt: str) -> tuple[PairAnswer | RubricAnswer | None, str]:
        """The answer to a question, which is asked twice if need be; and why there is none."""
        question = Question(prompt, self._form)
        reply = await self._client.ask(question)
        found = self._form.read(reply.text)
        if found is None and not reply.error:
            # At temperature 0, the same question would get the same answer.
            reply = await self._client.ask(Question(prompt, self._form, earlier=reply.text))
            found = self._form.read(reply.text)
        self._on_answer()
        return found, reply.error or ("" if found else f"no usable answer: {_short(reply.text)}")


def _known(*reasons: str) -> tuple[str, ...]:
    return tuple(reason for reason in reasons if reason)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    if not flat:
        return "empty; a judge that reasons may need more evaluate.judge.max_new_tokens"
    return repr(flat if len(flat) <= 200 else f"{flat[:197]}...")
