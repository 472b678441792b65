"""The figures of each stage's artifact, which later stages, the report page and `--json` read.

figures = PrepareFigures.from_json(artifact.figures)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar

from workflows.record import JsonObject, Record, optional

Value = TypeVar("Value")

_HELD_OUT = "held_out_"
_LEFT_OUT = "left out: "


@dataclass(frozen=True, kw_only=True)
class SetAsideGroup(Record):
    """Lines that `prepare` set aside for one kind of reason."""

    reason: str
    """the kind of reason, without the parts that differ between lines"""
    count: int
    file: str
    """of the first line, as `line` and `example`"""
    line: int
    example: str
    """the whole reason"""


@dataclass(frozen=True, kw_only=True)
class NearDuplicateFigures(Record):
    """Conversations or replies that are nearly the same as another one."""

    conversations: int
    """that have a near-duplicate, or a reply that has one"""
    replies: int | None = optional()
    """that have a near-duplicate, if replies are compared; the following numbers are then of replies"""
    clusters: int
    """sets of those that are alike; without near-duplicates one of each remains"""
    exact: int
    """those with the same words as another one"""
    on_both_sides: int
    """those held out with a near-duplicate among those to train on; what is measured on them flatters"""


@dataclass(frozen=True, kw_only=True)
class ContaminationFigures(Record):
    """Conversations that contain a reference text, such as a question of the evaluation."""

    conversations: int
    references: int
    """that were found in them"""
    of: int
    """references that were looked for"""


@dataclass(frozen=True, kw_only=True)
class PrepareFigures(Record):
    """Counts of the corpus; `quarantined` and `left_out` count lines, all others count usable conversations."""

    conversations: int
    """to train on"""
    held_out_conversations: int
    quarantined: int
    """lines that cannot be used"""
    left_out: int = 0
    """conversations that the settings of `data` leave out"""
    tokens: int
    """of training conversations, as `supervised_tokens`"""
    supervised_tokens: int
    held_out_tokens: int
    truncated: int
    longest: int
    """in tokens"""
    set_aside: tuple[SetAsideGroup, ...] = ()
    """the largest group first"""
    near_duplicates: NearDuplicateFigures | None = optional()
    contamination: ContaminationFigures | None = optional()


@dataclass(frozen=True, kw_only=True)
class ReferenceFigures(Record):
    """The number of rows with reference values."""

    conversations: int


@dataclass(frozen=True, kw_only=True)
class TuneFigures(Record):
    """The result of a search."""

    trials: int
    finished: int
    stopped: int
    failed: int
    winner: int
    """number of the trial"""
    step: int
    """of its best checkpoint"""
    values: JsonObject
    """the winner's settings by their dotted fields; JSON has them beside the figures"""
    metric: str
    """the metric that decides the winner; the key of `reported` in JSON"""
    reported: float
    remeasured: float
    """the same, measured again from the checkpoint"""
    front: tuple[int, ...] | None = optional()
    """with two metrics, the trials that no other beats in both"""

    def to_json(self) -> dict[str, object]:
        """Values and metric stand under their own names."""
        plain: dict[str, object] = {}
        for name, value in super().to_json().items():
            if name == "values":
                plain |= self.values
            elif name == "reported":
                plain[self.metric] = value
            elif name != "metric":
                plain[name] = value
        return plain


@dataclass(frozen=True, kw_only=True)
class TrainFigures(Record):
    """The reports of the last and the best checkpoint."""

    steps: int
    best_step: int
    held_out: Mapping[str, float]
    """of the best checkpoint: `loss`, and the objective's other measures; JSON has them as held_out_<name>"""
    training_loss: float
    tokens: float
    """trained on"""
    tokens_per_second: float | None = optional()
    resumed_from_step: float | None = optional()
    batch_tokens: float | None = optional()
    precision: str | None = optional()
    skipped_steps: float | None = optional()
    peak_memory_gb_per_worker: float

    def to_json(self) -> dict[str, object]:
        """Each held-out figure stands under its own name."""
        plain: dict[str, object] = {}
        for name, value in super().to_json().items():
            held_out = {f"{_HELD_OUT}{key}": value for key, value in self.held_out.items()}
            plain |= held_out if name == "held_out" else {name: value}
        return plain

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """The reverse."""
        return super().from_json({**content, "held_out": held_out_of(content)})


def held_out_of(figures: Mapping[str, Value]) -> dict[str, Value]:
    """The figures of a training that are measured on held-out conversations, by their short names."""
    return {name.removeprefix(_HELD_OUT): value for name, value in figures.items() if name.startswith(_HELD_OUT)}


@dataclass(frozen=True, kw_only=True)
class EvaluateFigures(Record):
    """The scorecard's figures; losses and perplexities are of the same held-out tokens."""

    base_loss: float
    tuned_loss: float
    loss_reduction: float
    base_perplexity: float
    tuned_perplexity: float
    scored_tokens: int
    preference_accuracy: float | None = optional()
    """of pairs of replies, as the two after it"""
    reward_margin: float | None = optional()
    scored_pairs: int | None = optional()
    base_fact_share: float | None = optional()
    """of questions with facts, as the one after it"""
    tuned_fact_share: float | None = optional()
    leaked_questions: int | None = optional()
    """of these questions, those that stand in the conversations trained on"""
    passed: bool
    verdict: str
    pair_loss: float | None = optional()
    """for an adversarial pair, like the next ones"""
    pair_reranked_loss: float | None = optional()
    pair_continued_loss: float | None = optional()
    pair_verdict: str | None = optional()
    pair_turns_verdict: str | None = optional()


class Form(StrEnum):
    """The formats of a release."""

    MODEL = "model"
    OPENVINO = "openvino"
    OPENVINO_BF16 = "openvino bf16"
    """the export with which a quantised one is compared; not released"""
    VLLM = "vllm"
    GGUF = "gguf"


@dataclass(frozen=True, kw_only=True)
class FormFigures(Record):
    """One format of a release, compared with the unmerged float32 checkpoint."""

    form: Form
    kept: bool = True
    weights: str
    size_mb: float
    perplexity: float
    perplexity_increase: float
    """0.01 is 1 %"""
    greedy_agreement: float
    """share of supervised tokens for which both predict the same token"""
    largest_logit_change: float | None = optional()
    load_s: float
    tokens_per_second: float | None = optional()
    """of a greedy reply; None if none of our engines loads the format"""


@dataclass(frozen=True)
class Part:
    """Whether a release has an optional part."""

    why_not: str = ""
    """why not; empty if it has the part"""

    @property
    def is_there(self) -> bool:
        """Whether the release has the part."""
        return not self.why_not


@dataclass(frozen=True, kw_only=True)
class OptimizeFigures(Record):
    """The formats of the release."""

    openvino: Part
    """in JSON, "exported" or the reason why there is no export"""
    checkpoint_perplexity: float
    held_out_tokens: int
    """number of tokens on which the formats are compared"""
    forms: tuple[FormFigures, ...]
    discriminator: Part | None = optional()
    """for an adversarial pair; in JSON, "shipped" or the reason why it is left out"""

    def to_json(self) -> dict[str, object]:
        """Optional parts become a word or a reason."""
        plain = super().to_json() | {"openvino": self.openvino.why_not or "exported"}
        if self.discriminator is not None:
            why_not = self.discriminator.why_not
            plain["discriminator"] = f"{_LEFT_OUT}{why_not}" if why_not else "shipped"
        return plain

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """The reverse."""
        word, of_pair = str(content["openvino"]), content.get("discriminator")
        openvino = Part("" if word == "exported" else word)
        discriminator = Part("" if of_pair == "shipped" else str(of_pair).removeprefix(_LEFT_OUT))
        return super().from_json(
            {**content, "openvino": openvino, "discriminator": None if of_pair is None else discriminator}
        )


@dataclass(frozen=True, kw_only=True)
class DeployFigures(Record):
    """An endpoint: its address, and what it serves."""

    url: str
    model: str
    """the name that clients send as `model`"""
    engine: str | None = optional()
    engine_because: str | None = optional()
