"""The section evaluate."""

from typing import Annotated

from pydantic import Field

from workflows.spec.section import HOW, Section, Share


class GateSpec(Section):
    """What a checkpoint must reach before it may be deployed."""

    min_loss_reduction: Annotated[float, Field(ge=-100.0, le=100.0)] | None = None
    """Nats per token by which the tuned held-out loss must be below the base model's. Left out, 0; for preference
    pairs, which may make the chosen reply itself less likely, it is not looked at then."""

    min_preference_accuracy: Share = 0.5
    """Of preference pairs: the share of held-out pairs in which training has favoured the chosen reply must be
    above this."""

    min_fact_share: Share = 0.0
    """Share of the facts asked for in `evaluate.questions` that the tuned model must get right."""


class PairSpec(Section):
    """What is measured of an adversarial pair beside the rest."""

    histories: Annotated[int, Field(ge=16, le=1_000_000)] = 200
    """Held-out conversations whose last replies are looked at, at most."""

    temperatures: Annotated[list[Annotated[float, Field(ge=0.1, le=10.0)]], Field(min_length=1)] = Field(
        default=[0.7, 1.0]
    )
    """Replies are drawn at each."""

    best_of: Annotated[int, Field(ge=2, le=256)] = 4
    """As at the endpoint."""

    candidates: Annotated[int, Field(ge=2, le=1024)] = 16
    """Replies drawn to each history for the normaliser of the pair's likelihood."""

    fresh_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps, of 16 pairs each, in which a fresh discriminator learns."""


class EvaluateSpec(Section):
    """evaluate: checkpoint to scorecard."""

    gate: GateSpec = GateSpec()
    """When the scorecard says pass."""

    num_replies: Annotated[int, Field(ge=0, le=1000)] = 3
    """Held-out prompts answered by base and tuned model side by side."""

    questions: str | None = None
    """A JSON-lines file of {"question", "facts": [[spelling, ...], ...]}: questions that both models are asked,
    and the facts looked for in their replies. A relative path starts at the pipeline file's folder."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Tokens of a reply."""

    pair: PairSpec = PairSpec()
    """For `train.objective: adversarial`."""

    num_workers: Annotated[int, Field(ge=1, le=65_536)] = Field(default=1, json_schema_extra=HOW)
    """Processes that score and reply, each with both models."""

    cpus_per_worker: Annotated[float, Field(gt=0.0, le=4096.0)] = Field(default=1.0, json_schema_extra=HOW)
    """CPU cores and threads of a worker."""

    gpus_per_worker: Annotated[float, Field(ge=0.0, le=8.0)] = Field(default=0.0, json_schema_extra=HOW)
    """GPUs of a worker."""
