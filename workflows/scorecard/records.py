"""scorecard.json as types. Imports neither Ray nor torch: a run's page reads it too."""

from collections.abc import Sequence
from dataclasses import dataclass

from workflows.figures import EvaluateFigures
from workflows.judge.records import JudgeFigures
from workflows.record import JsonObject, Record, optional


@dataclass(frozen=True, kw_only=True)
class Diversity(Record):
    """The diversity of replies."""

    distinct_1: float
    """share of distinct tokens; the next field is of pairs of tokens"""
    distinct_2: float
    self_bleu: float


@dataclass(frozen=True, kw_only=True)
class RepliesFigures(Record):
    """How real one model's replies look at one temperature."""

    model: str
    temperature: float
    fresh_accuracy: float
    """accuracy of a fresh discriminator"""
    length_accuracy: float
    """accuracy of a classifier that sees only lengths"""
    frechet_distance: float
    distinct_1: float
    distinct_2: float
    self_bleu: float


@dataclass(frozen=True, kw_only=True)
class Controls(Record):
    """Controls of the fresh discriminator: must be about 0.5, and about 1."""

    real_against_real: float
    random_tokens: float


@dataclass(frozen=True, kw_only=True)
class PairLosses(Record):
    """Held-out losses of the last replies, in nats per token."""

    loss: float
    reranked_loss: float
    """with the discriminator among `candidates` replies"""
    candidates: int
    discriminator_accuracy: float
    verdict: str
    """whether the discriminator lowers the loss"""
    continued_loss: float | None = optional()
    """of the control: likelihood training for the same time"""
    turns_verdict: str | None = optional()
    """whether the turns lower it"""


@dataclass(frozen=True, kw_only=True)
class AdversarialScorecard(PairLosses):
    """The scorecard's part `pair`."""

    histories: int
    replies: tuple[RepliesFigures, ...]
    controls: Controls
    real: Diversity
    """of the real replies"""


@dataclass(frozen=True, kw_only=True)
class AskedQuestion(Record):
    """A question, both models' replies, and the number of facts in each."""

    question: str
    facts: list[list[str]]
    base: str
    tuned: str
    base_facts: int
    tuned_facts: int


@dataclass(frozen=True, kw_only=True)
class ComparedReply(Record):
    """A held-out conversation up to its last reply, that reply, and the models' replies."""

    messages: Sequence[JsonObject]
    reference: str
    base: str
    tuned: str
    service: str | None = optional()


@dataclass(frozen=True, kw_only=True)
class PartLoss(Record):
    """The held-out losses of one part of the conversations, in nats per token."""

    part: str
    """the name of a source, or `language` and its tag"""
    base_loss: float
    tuned_loss: float
    scored_tokens: int


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """The checkpoint and another model by one measure on the same items, or on a slice of them."""

    measure: str
    """`held-out loss`, `preference accuracy`, or the name of a suite"""
    slice: str | None
    """such as `topic=returns`; None for all items"""
    against: str
    """`base` or `service`"""
    unit: str
    """`share` (of the points), `nats` (a token) or `number`"""
    lower_is_better: bool
    golden: bool
    items: int
    clusters: int
    """of items that belong together"""
    other: float
    """the other model's mean, and the checkpoint's"""
    tuned: float
    difference: float
    low: float | None
    """both ends of the difference's interval; None if the items cannot say"""
    high: float | None
    p_value: float
    """of no difference, two-sided, not corrected for the number of comparisons"""
    smallest: float | None
    """the smallest difference that this many items would show in four of five cases"""
    confidence: float

    @property
    def is_shown(self) -> bool:
        """Whether chance hardly explains the difference, looked at alone."""
        return self.p_value <= 1 - self.confidence

    @property
    def is_worse(self) -> bool:
        """Whether the checkpoint is worse, by more than chance explains."""
        return self.is_shown and (self.difference > 0) == self.lower_is_better


@dataclass(frozen=True, kw_only=True)
class ModelScore(Record):
    """A model's mean score in a suite, with its interval."""

    model: str
    mean: float
    low: float | None
    high: float | None
    failed: int
    """items to which the model has no reply, because the request is refused"""


@dataclass(frozen=True, kw_only=True)
class SuiteFigures(Record):
    """A suite of `evaluate.suites`."""

    name: str
    scorer: str
    golden: bool
    unit: str
    items: int
    leaked: int = 0
    """items that stand in the conversations trained on"""
    scores: tuple[ModelScore, ...]


@dataclass(frozen=True, kw_only=True)
class TaskFigures(Record):
    """A task of `evaluate.lm_eval`."""

    name: str
    items: int
    values: dict[str, dict[str, float]]
    """lm-eval's own figure of each metric, by model"""


@dataclass(frozen=True, kw_only=True)
class ScoredItem(Record):
    """An item of a suite, in items.jsonl."""

    suite: str
    id: str
    place: str
    """file:line"""
    group: str
    tags: dict[str, str]
    asked: list[str]
    """by turn, as the next one"""
    replies: dict[str, list[str]]
    """by model"""
    scores: dict[str, float]
    failed: list[str]
    """models without a reply"""


@dataclass(frozen=True, kw_only=True)
class Scorecard(EvaluateFigures):
    """scorecard.json: the figures, and the data behind them."""

    questions: tuple[AskedQuestion, ...] = ()
    replies: tuple[ComparedReply, ...] = ()
    parts: tuple[PartLoss, ...] = ()
    """by source and by language, if there are several"""
    suites: tuple[SuiteFigures, ...] = ()
    """with the tasks of `evaluate.lm_eval`"""
    tasks: tuple[TaskFigures, ...] = ()
    comparisons: tuple[Compared, ...] = ()
    service: str | None = optional()
    """the key of the release in service, if the checkpoint was compared with it"""
    judge: JudgeFigures | None = optional()
    pair: AdversarialScorecard | None = optional()
    """for an adversarial pair"""

    @property
    def figures(self) -> EvaluateFigures:
        """The figures of the artifact."""
        pair = {} if self.pair is None else self.pair.to_json()
        names = ("loss", "reranked_loss", "continued_loss", "verdict", "turns_verdict")
        return EvaluateFigures.from_json(
            {**self.to_json(), **{f"pair_{name}": pair[name] for name in names if name in pair}}
        )
