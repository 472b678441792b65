"""The section `tune` of the pipeline file: which settings are searched, how, and for how long.

Like all of the spec it imports no library but pydantic.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from workflows.spec.section import HOW, PositiveInt, Section, named

Metric = Literal["held_out_loss", "held_out_accuracy", "held_out_margin", "seconds", "peak_memory_gb"]


class RandomSpec(Section):
    """Independent draws."""

    name: Literal["random"] = "random"
    """Independent draws from the space."""


class GridSpec(Section):
    """Every combination."""

    name: Literal["grid"] = "grid"
    """Every combination of the space's lists, which `trials` may cut off."""


class TpeSpec(Section):
    """Tree-structured Parzen estimator (Bergstra et al. 2011)."""

    name: Literal["tpe"] = "tpe"
    """Tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna: draws where earlier trials were good."""

    multivariate: bool = False
    """Model the fields together instead of each alone (Falkner et al. 2018, arXiv:1807.01774)."""

    startup_trials: Annotated[int, Field(ge=1, le=100_000)] = 10
    """So many are drawn at random before the first is not."""


class AllSpec(Section):
    """No scheduler."""

    name: Literal["none"] = "none"
    """Every trial is trained to its end."""


class AshaSpec(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934)."""

    name: Literal["asha"] = "asha"
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at each rung, so many times as many steps
    as at the one before, a trial goes on only if it is among the best."""

    grace_steps: PositiveInt | None = None
    """The first rung, in optimizer steps; `train.checkpoint_every_steps` if left out."""

    reduction_factor: Annotated[float, Field(gt=1.0, le=100.0)] = 3.0
    """One of so many goes on, to so many times as many steps."""


class MedianSpec(Section):
    """Median stopping (Golovin et al. 2017)."""

    name: Literal["median"] = "median"
    """Median stopping (Golovin et al. 2017): a trial ends whose best value so far is worse than the median of the
    others' running means."""

    grace_steps: PositiveInt | None = None
    """No trial ends before so many steps; `train.checkpoint_every_steps` if left out."""

    min_trials: Annotated[int, Field(ge=2, le=100_000)] = 3
    """Nor before so many others can be compared with."""


class PopulationSpec(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846)."""

    name: Literal["population"] = "population"
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): `trials` members train in step; from time
    to time the worst go on from the weights and optimizer states of the best, with changed settings."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between two such times; `train.checkpoint_every_steps` if left out, else a multiple of it."""

    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Share of the members that copy, and of those that are copied."""

    resample_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """How often a setting is drawn anew instead of changed a little (times 1.2 or 0.8; of a list, the next one)."""


def _one_or_two(metrics: list[str]) -> list[str]:
    if not 1 <= len(metrics) <= 2 or len(set(metrics)) < len(metrics):
        raise ValueError(f"got {metrics}; name one metric, or two different ones")
    return metrics


class TuneSpec(Section):
    """tune: a search over settings of `train`; its winner is the checkpoint."""

    space: Annotated[dict[str, Any], Field(min_length=1)]
    """Dotted fields of `train` to what may stand there: `[8, 16, 32]`, `{uniform: [0, 0.1]}`,
    `{loguniform: [1e-5, 1e-3]}`, for whole numbers `{int: [1, 64]}` and `{logint: [1, 64]}`."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many settings are tried, those that an earlier search has measured included."""

    time_minutes: Annotated[float, Field(gt=0.0, le=1_000_000.0)] | None = None
    """The search ends after so many minutes; of each start, if it is interrupted."""

    metric: Annotated[
        list[Metric], BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        AfterValidator(_one_or_two),
    ] = Field(default=["held_out_loss"])  # fmt: skip
    """What is compared, measured at each checkpoint: `held_out_loss`; of pairs also `held_out_accuracy` and
    `held_out_margin`; `seconds` of training; `peak_memory_gb` of a worker. Of two (`[held_out_loss, seconds]`) the
    first decides who wins, and the trials that none beats in both are told."""

    searcher: Annotated[
        Annotated[RandomSpec | GridSpec | TpeSpec, Field(discriminator="name")], BeforeValidator(named)
    ] = RandomSpec()
    """How settings are chosen: a name, or a mapping with `name` and the fields of this one."""

    scheduler: Annotated[
        Annotated[AllSpec | AshaSpec | MedianSpec | PopulationSpec, Field(discriminator="name")],
        BeforeValidator(named),
    ] = AllSpec()
    """Which trials are worth going on with: a name, or a mapping with `name` and the fields of this one."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the choice of settings."""

    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = Field(default=None, json_schema_extra=HOW)
    """Trials at the same time. Left out: as many as the cluster's nodes have room for; where nodes come when they are
    asked for, say how many they will have room for."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = Field(default=2, json_schema_extra=HOW)
    """How often a trial whose workers were lost goes on from its last checkpoint before it counts as failed."""

    @model_validator(mode="after")
    def _ends(self) -> "TuneSpec":
        if self.trials is None and self.time_minutes is None and self.searcher.name != "grid":
            raise ValueError("says neither trials nor time_minutes; give one of them, or both")
        return self

    @model_validator(mode="after")
    def _population_is_possible(self) -> "TuneSpec":
        if self.scheduler.name == "population":
            if self.trials is None or self.trials < 2:
                raise ValueError("scheduler population needs trials, the number of its members, of 2 or more")
            if self.searcher.name != "random":
                raise ValueError(f"scheduler population draws its members at random; leave out {self.searcher.name}")
        return self

    @model_validator(mode="after")
    def _two_metrics_are_searched_whole(self) -> "TuneSpec":
        if len(self.metric) == 2 and self.scheduler.name != "none":
            raise ValueError(
                f"scheduler {self.scheduler.name} stops trials by one metric, and metric names two; leave one out"
            )
        return self
