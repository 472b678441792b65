"""What a judge compares of an evaluation, and what it finds as a measure.

judged = judge.compare(to_judge(asked, results, against="base"), progress)
measures = [*measures, judge_measure(judged, against="base")]
"""

from collections.abc import Mapping, Sequence

from models.chat import Conversation, Message
from models.chat.plain_text import said_text
from workflows.judge.items import item_to_judge
from workflows.judge.records import Judged, ToJudge
from workflows.record import JsonObject
from workflows.scorecard.comparisons import Measure
from workflows.scorecard.questions import Prompt
from workflows.scorecard.suite_scores import SuitePrompt, is_given_reply, message_of
from workflows.scorecard.worker import TUNED, ScoreRow

JUDGE = "judge"


def to_judge(asked: Sequence[Prompt | SuitePrompt], results: Sequence[ScoreRow], against: str) -> list[ToJudge]:
    """The held-out prompts and the items of suites to which both models have replied; the checkpoint's is the second
    reply.
    """
    answers = {(row["question"], row["model"]): row["answers"] for row in results if row.get("answers")}
    found = []
    for number, prompt in enumerate(asked):
        if is_given_reply(prompt) or (isinstance(prompt, Prompt) and prompt.question):
            continue
        first, second = (_messages(answers[number, model]) for model in (against, TUNED))
        if first and second:
            found.append(_item(number, prompt, first, second))
    return found


def judge_measure(judged: Judged, against: str) -> Measure | None:
    """The judge's outcomes beside a coin, 0.5, which stands for the other model; None without any that counts."""
    scored = judged.scored
    if not scored:
        return None
    scores: Mapping[str, list[float]] = {against: [0.5] * len(scored), TUNED: [item.score or 0.0 for item in scored]}
    return Measure(
        name=JUDGE,
        unit="share",
        scores=scores,
        clusters=[item.group for item in scored],
        tags=[item.tags for item in scored],
    )


def _messages(answers: Sequence[JsonObject]) -> list[Message]:
    """A model's replies; none if the endpoint refused one."""
    messages = [message_of(answer) for answer in answers]
    return [message for message in messages if message] if all(messages) else []


def _item(number: int, prompt: Prompt | SuitePrompt, first: Sequence[Message], second: Sequence[Message]) -> ToJudge:
    if isinstance(prompt, SuitePrompt):
        return item_to_judge(prompt.suite.name, prompt.item, first, second)
    [turn] = prompt.turns
    asked = Conversation(list(turn.messages), turn.tools)
    return ToJudge(f"held out/{number}", asked, said_text(first[0]), said_text(second[0]))
