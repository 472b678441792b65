"""Suites scored: what each model replied to each item, and the points that it gets.

prompts = suite_prompts(read_suites(spec.evaluate))
scored = score_suites(prompts, answers, losses)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.chat import Message
from models.chat.plain_text import said_text
from models.statistics.interval import interval
from workflows.record import JsonObject
from workflows.scorecard.comparisons import Measure, Unit, finite
from workflows.scorecard.records import ModelScore, ScoredItem, SuiteFigures
from workflows.scorecard.worker import BASE, SERVICE, TUNED, ScoreRow
from workflows.suites.suite import Item, Suite, Turn

_MODELS = (BASE, TUNED, SERVICE)


@dataclass(frozen=True)
class SuitePrompt:
    """An item that the models reply to, or whose given reply they find more or less likely."""

    suite: Suite
    item: Item

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The item's turns; of a given reply, with it at the end."""
        if not self.suite.is_scored_by_loss:
            return self.item.turns
        *before, last = self.item.turns
        return (*before, Turn((*last.messages, last.expected), last.tools))

    @property
    def max_new_tokens(self) -> int:
        """Of each reply."""
        return self.suite.max_new_tokens


@dataclass(frozen=True)
class ScoredSuites:
    """The items of all suites, by suite in the order of the pipeline file."""

    figures: tuple[SuiteFigures, ...]
    measures: tuple[Measure, ...]
    items: tuple[ScoredItem, ...]


def suite_prompts(suites: Sequence[Suite]) -> list[SuitePrompt]:
    """All items of all suites."""
    return [SuitePrompt(suite, item) for suite in suites for item in suite.items]


def is_given_reply(prompt: object) -> bool:
    """Whether a prompt is an item whose reply is given."""
    return isinstance(prompt, SuitePrompt) and prompt.suite.is_scored_by_loss


def score_suites(prompts: Mapping[int, SuitePrompt], results: Sequence[ScoreRow], confidence: float) -> ScoredSuites:
    """Score what the workers found; `prompts` by the number of their question. Raises what a scorer raises."""
    found: dict[int, dict[str, ScoreRow]] = {number: {} for number in prompts}
    for row in results:
        if row["question"] in found:
            found[row["question"]][row.get("model") or ""] = row
    by_suite: dict[str, list[ScoredItem]] = {prompt.suite.name: [] for prompt in prompts.values()}
    for number, prompt in prompts.items():
        by_suite[prompt.suite.name].append(_scored(prompt, found[number]))
    suites = {prompt.suite.name: prompt.suite for prompt in prompts.values()}
    measures = tuple(_measure(suite, by_suite[name]) for name, suite in suites.items())
    return ScoredSuites(
        figures=tuple(
            _figures(suite, measure, by_suite[suite.name], confidence)
            for suite, measure in zip(suites.values(), measures, strict=True)
        ),
        measures=measures,
        items=tuple(item for items in by_suite.values() for item in items),
    )


def _scored(prompt: SuitePrompt, rows: Mapping[str, ScoreRow]) -> ScoredItem:
    suite, item = prompt.suite, prompt.item
    scores: dict[str, float] = {}
    replies: dict[str, list[str]] = {}
    failed: list[str] = []
    if suite.is_scored_by_loss:
        row = rows.get("")
        # A reply without a token of its own has nothing to be measured.
        scores = {model: loss / row["targets"] for model, loss in row["losses"].items()} if row else {}
    else:
        for model, row in rows.items():
            answers = row["answers"]
            scores[model] = suite.item_score(item, [message_of(answer) for answer in answers])
            replies[model] = [_shown(answer) for answer in answers]
            if any("error" in answer for answer in answers):
                failed.append(model)
    return ScoredItem(
        suite=suite.name,
        id=item.id,
        place=item.place,
        group=item.group,
        tags=dict(item.tags),
        asked=[_asked(turn) for turn in item.turns],
        scores=scores,
        replies=replies,
        failed=failed,
    )


def message_of(answer: JsonObject) -> Message | None:
    """A worker's answer as a message; None for a request that the endpoint refused."""
    return None if "error" in answer else answer  # type: ignore[return-value]


def _asked(turn: Turn) -> str:
    return "\n".join(said_text(message) for message in turn.messages)


def _shown(answer: JsonObject) -> str:
    return f"[no reply: {answer['error']}]" if "error" in answer else said_text(answer).strip()


def _measure(suite: Suite, items: Sequence[ScoredItem]) -> Measure:
    """The scores of the models that have one for every item of the suite."""
    complete = [item for item in items if item.scores]
    models = (
        [model for model in complete[0].scores if all(model in item.scores for item in complete)] if complete else []
    )
    scores = {model: [item.scores[model] for item in complete] for model in models}
    return Measure(
        name=suite.name,
        unit=_unit(suite, scores),
        scores=scores,
        clusters=[item.group for item in complete],
        tags=[item.tags for item in complete],
        lower_is_better=suite.is_scored_by_loss,
        golden=suite.golden,
    )


def _unit(suite: Suite, scores: Mapping[str, Sequence[float]]) -> Unit:
    if suite.is_scored_by_loss:
        return "nats"
    return "share" if all(0 <= score <= 1 for of_model in scores.values() for score in of_model) else "number"


def _figures(suite: Suite, measure: Measure, items: Sequence[ScoredItem], confidence: float) -> SuiteFigures:
    scores = []
    for model, values in measure.scores.items():
        found = interval(values, measure.clusters, confidence=confidence)
        failed = sum(model in item.failed for item in items)
        mean, low, high = round(found.mean, 6), finite(found.low), finite(found.high)
        scores.append(ModelScore(model=model, mean=mean, low=low, high=high, failed=failed))
    return SuiteFigures(
        name=suite.name, scorer=suite.scorer_name, golden=suite.golden, unit=measure.unit, items=len(items),
        scores=tuple(scores),
    )  # fmt: skip
