"""What a judge is given and what it finds, as types. Imports neither Ray nor torch: a run's page reads them too."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.chat.form import Conversation
from workflows.record import Record, optional

Outcome = Literal["win", "tie", "loss", "no answer"]
"""for the second reply, which is the checkpoint's"""

_SCORES: Mapping[str, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class ToJudge:
    """Two replies to one conversation."""

    id: str
    asked: Conversation
    """before the replies"""
    first: str
    """the reply of the model to compare with: the base model, or the release in service"""
    second: str
    """the checkpoint's reply"""
    tags: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    """items of one group belong together: statistics take them as one cluster"""


@dataclass(frozen=True, kw_only=True)
class JudgedItem(Record):
    """What the judge finds of one item."""

    id: str
    group: str
    tags: Mapping[str, str]
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    """the judge's own words: pairwise, those with the first reply in first place, then those with the second; rubric,
    those on the first and on the second reply
    """
    winners: tuple[str, str] | None = optional()
    """pairwise: `first`, `second` or `tie`, in both orders; None without two answers"""
    first_scores: Mapping[str, int] | None = optional()
    """rubric: by criterion, from 1 to 5; None without both answers"""
    second_scores: Mapping[str, int] | None = optional()

    @property
    def score(self) -> float | None:
        """1 for a win, 0.5 for a tie, 0 for a loss; None without an answer."""
        return _SCORES.get(self.outcome)


@dataclass(frozen=True, kw_only=True)
class AgreementFigures(Record):
    """How a judge agrees with people, on a hand-labelled set."""

    labels: int
    """pairs of replies with usable answers"""
    share: float
    """of pairs in which the judge prefers what people prefer, ties included"""
    low: float
    """of the share's interval of 95 % (Wilson 1927), as `high`"""
    high: float
    kappa: float | None
    """agreement beyond chance (Cohen 1960); None if people or judge always say the same"""


@dataclass(frozen=True, kw_only=True)
class JudgeFigures(Record):
    """A judge's figures over all items."""

    judge: str
    """its model and where, or the key of its release"""
    mode: str
    items: int
    wins: int
    """of the checkpoint, as ties and losses"""
    ties: int
    losses: int
    no_answers: int
    """items without a usable answer; they are in none of the three"""
    identical: int
    """items whose replies are the same: ties, for which the judge is not asked"""
    consistency: float | None = optional()
    """pairwise: share of pairs, labelled ones included, with the same winner in both orders"""
    first_place_share: float | None = optional()
    """pairwise: share of answers, of those that name a winner, that name the reply in first place; 0.5 is no bias"""
    agreement: AgreementFigures | None = optional()
    requests: int
    """answers that were asked for now"""
    cached: int
    """answers that were in the store"""
    input_tokens: int
    """of the requests, as the judge counts them"""
    output_tokens: int
    cost: float | None = optional()
    """of the requests, if the prices are given"""
    refused: str = ""
    """why the judge's answers do not count; empty if they do"""


@dataclass(frozen=True, kw_only=True)
class Judged(Record):
    """Everything that a judge finds."""

    figures: JudgeFigures
    items: tuple[JudgedItem, ...]

    @property
    def scored(self) -> list[JudgedItem]:
        """The items with an outcome that counts; none if the judge is refused."""
        return [] if self.figures.refused else [item for item in self.items if item.score is not None]
