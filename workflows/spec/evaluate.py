"""The section evaluate."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workflows.spec.judge import JudgeSpec
from workflows.spec.lm_eval import LmEvalEntry
from workflows.spec.section import ADDED, HOW, Section, Share
from workflows.spec.suites import SuiteSpec


class GateSpec(Section):
    """What a checkpoint must reach before it may be deployed."""

    rule: Literal["thresholds", "better", "no_worse"] = Field(default="thresholds", json_schema_extra=ADDED)
    """`thresholds`: the minimum values below. `better`: the checkpoint is better in the held-out loss or in a suite,
    and worse in none of them, by more than chance explains. `no_worse`: in none of them may it be worse by more than
    `margin`. Compared with `evaluate.compare_with`; minimum values that are set count too. docs/verdict.md explains
    the statistics."""

    margin: Annotated[float, Field(gt=0.0, le=100.0)] = Field(default=0.02, json_schema_extra=ADDED)
    """For `no_worse`: the largest loss of quality that passes, as a share of a suite's points (0.02 is two points of
    a hundred) or in nats per token."""

    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = Field(default=0.95, json_schema_extra=ADDED)
    """Confidence of all intervals and of the rules `better` and `no_worse`; 0.95 passes equal models as `better` in
    at most one of 20 cases."""

    min_loss_reduction: Annotated[float, Field(ge=-100.0, le=100.0)] | None = None
    """Minimum reduction of the held-out loss against the base model, in nats per token. Left out, it is 0 with the
    rule `thresholds`; for preference pairs it is then not checked, since they may make the chosen reply itself less
    likely."""

    min_preference_accuracy: Share = 0.5
    """For preference pairs: the share of held-out pairs in which training favours the chosen reply must be above
    this."""

    min_fact_share: Share = 0.0
    """Minimum share of the facts in `evaluate.questions` that the tuned model must get right."""


class PairSpec(Section):
    """Additional measurements for adversarial training."""

    histories: Annotated[int, Field(ge=16, le=1_000_000)] = 200
    """Maximum number of held-out conversations whose last replies are measured."""

    temperatures: Annotated[list[Annotated[float, Field(ge=0.1, le=10.0)]], Field(min_length=1)] = Field(
        default=[0.7, 1.0]
    )
    """Sampling temperatures; replies are drawn at each of them."""

    best_of: Annotated[int, Field(ge=2, le=256)] = 4
    """Number of replies for best-of-n, as at the endpoint."""

    candidates: Annotated[int, Field(ge=2, le=1024)] = 16
    """Replies drawn for each history to estimate the normaliser of the pair's likelihood."""

    fresh_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Training steps of a fresh discriminator, of 16 pairs each."""


class EvaluateSpec(Section):
    """evaluate: compares the checkpoint with its base model, and perhaps with the release in service."""

    compare_with: Literal["base", "service"] = Field(default="base", json_schema_extra=ADDED)
    """What the gate's rule and golden suites compare the checkpoint with. `service`: the release of this pipeline
    that was deployed last from another training; as long as there is none, the base model. The scorecard has both."""

    gate: GateSpec = GateSpec()
    """What the scorecard needs to pass."""

    num_replies: Annotated[int, Field(ge=0, le=1000)] = 3
    """Number of held-out prompts that the base and the tuned model answer side by side."""

    questions: str | None = None
    """A JSON-lines file of {"question", "facts": [[spelling, ...], ...]}: questions for both models, and the facts to
    look for in their replies. A relative path starts at the pipeline file's folder."""

    suites: list[SuiteSpec] = Field(default=[], json_schema_extra=ADDED)
    """Suites of items to which both models reply; a scorer scores the replies."""

    judge: JudgeSpec | None = Field(default=None, json_schema_extra=ADDED)
    """A model that compares the replies to the same prompts; left out, none does."""

    lm_eval: list[LmEvalEntry] = Field(default=[], json_schema_extra=ADDED)
    """Tasks of lm-evaluation-harness: names, folders of tasks, or sections with settings. Needs the extra
    `lm-eval`."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Maximum tokens of a reply."""

    pair: PairSpec = PairSpec()
    """Measurements for `train.objective: adversarial`."""

    num_workers: Annotated[int, Field(ge=1, le=65_536)] = Field(default=1, json_schema_extra=HOW)
    """Number of processes that score and generate; each loads both models."""

    cpus_per_worker: Annotated[float, Field(gt=0.0, le=4096.0)] = Field(default=1.0, json_schema_extra=HOW)
    """CPU cores and threads per worker."""

    gpus_per_worker: Annotated[float, Field(ge=0.0, le=8.0)] = Field(default=0.0, json_schema_extra=HOW)
    """GPUs per worker."""

    @model_validator(mode="after")
    def _suites_have_names(self) -> Self:
        names: dict[str, int] = {}
        for index, suite in enumerate(self.suites):
            first = names.setdefault(suite.shown_name, index)
            if first != index:
                raise ValueError(
                    f"suites.{first} and suites.{index} are both named {suite.shown_name!r}; set the `name` of one"
                )
        return self
