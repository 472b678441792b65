"""The section `tune` of the pipeline file: which settings to search, how, and for how long.

Like all of the spec, it imports no library except pydantic.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from workflows.spec.constraints import parse_constraint
from workflows.spec.data import check_transformer_size
from workflows.spec.section import ADDED, HOW, PositiveInt, Section, named

SUITE = "suite_"
"""the beginning of a metric that is the mean score of a suite"""

OPTUNA = "optuna:"
"""the beginning of an Optuna study in `warm_start`"""

SQLITE = "sqlite:///"
"""the beginning of the address of an Optuna storage that is a file"""

COSTS = ("seconds", "peak_memory_gb")
"""metrics of a training's cost, which every objective has"""

Metric = (
    Literal[
        "held_out_loss", "held_out_accuracy", "held_out_margin", "held_out_plain_loss", "held_out_divergence",
        "seconds", "peak_memory_gb",
    ]
    | Annotated[str, Field(pattern=rf"^{SUITE}.+")]
)  # fmt: skip


class RandomSpec(Section):
    """Random search."""

    name: Literal["random"] = "random"
    """Random search: independent samples from the space."""


class GridSpec(Section):
    """Grid search."""

    name: Literal["grid"] = "grid"
    """Grid search: every combination of the space's lists, up to `trials` of them."""


class TpeSpec(Section):
    """Tree-structured Parzen estimator (Bergstra et al. 2011)."""

    name: Literal["tpe"] = "tpe"
    """Tree-structured Parzen estimator (Bergstra et al. 2011), from Optuna: samples where earlier trials were
    good."""

    multivariate: bool = False
    """Model the fields jointly instead of independently (Falkner et al. 2018, arXiv:1807.01774)."""

    startup_trials: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Random trials before TPE takes over."""


class ProxySpec(Section):
    """A small model that tries a mixture: a transformer like Llama with random weights and the base model's
    tokenizer."""

    hidden_size: Annotated[int, Field(ge=2, le=8192), AfterValidator(check_transformer_size)] = 32
    """Size of embeddings and hidden states: a multiple of 64, or an even number below 64."""

    num_layers: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of layers."""

    max_steps: PositiveInt = 200
    """Optimizer steps of its training, each with the tokens of a step of one worker of `train`."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-3
    """Peak learning rate of its training."""


class MixtureSearchSpec(Section):
    """A search over the weights of the sources (RegMix, Liu et al. 2025, arXiv:2407.01492)."""

    name: Literal["mixture"] = "mixture"
    """A search over `data.sources.N.weight` (RegMix, Liu et al. 2025, arXiv:2407.01492): small models train on random
    mixtures of the sources, and a regression of their held-out losses predicts the best mixture. The base model then
    trains on that mixture, on the sources in proportion to their tokens, and on equal shares; the best of these three
    wins. Leave out `tune.space`, `trials` and `time_minutes`."""

    proxies: Annotated[int, Field(ge=10, le=100_000)] = 64
    """Number of small models."""

    proxy: ProxySpec = ProxySpec()
    """The small models."""


class AllSpec(Section):
    """No early stopping."""

    name: Literal["none"] = "none"
    """No early stopping: every trial trains to its end."""


class AshaSpec(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934)."""

    name: Literal["asha"] = "asha"
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at each rung, only the best trials
    continue; each rung has `reduction_factor` times the steps of the one before."""

    grace_steps: PositiveInt | None = None
    """The first rung, in optimizer steps; defaults to 0.4 of the longest training."""

    reduction_factor: Annotated[float, Field(gt=1.0, le=100.0)] = 3.0
    """One in this many trials continues past a rung, to this many times the steps."""


class HyperbandSpec(Section):
    """Asynchronous Hyperband over tokens (Li et al. 2018, arXiv:1603.06560; 2020, arXiv:1810.05934)."""

    name: Literal["hyperband"] = "hyperband"
    """Asynchronous Hyperband over tokens (Li et al. 2018, arXiv:1603.06560; 2020, arXiv:1810.05934): at each rung,
    only the best trials continue. A trial is compared at its first checkpoint at or after a rung, so trials with
    different batch sizes are compared after the same number of tokens."""

    grace_tokens: PositiveInt | None = None
    """The first rung, in tokens that a training has read; defaults to 0.4 of the longest training."""

    reduction_factor: Annotated[float, Field(gt=1.0, le=100.0)] = 2.0
    """One in this many trials continues past a rung, to this many times the tokens."""

    brackets: Annotated[int, Field(ge=1, le=10)] = 1
    """Number of brackets. Trials of each further one are first compared a rung later, which protects trials that
    improve late."""


class MedianSpec(Section):
    """Median stopping (Golovin et al. 2017)."""

    name: Literal["median"] = "median"
    """Median stopping (Golovin et al. 2017): stops a trial whose best value so far is worse than the median of the
    other trials' running means."""

    grace_steps: PositiveInt | None = None
    """Minimum optimizer steps before a trial may stop; defaults to 0.4 of the longest training."""

    min_trials: Annotated[int, Field(ge=2, le=100_000)] = 3
    """Minimum number of other trials to compare with before a trial may stop."""


class PopulationSpec(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846)."""

    name: Literal["population"] = "population"
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): `trials` members train in lockstep; at
    intervals, the worst members copy the weights and optimizer states of the best and continue with changed
    settings."""

    every_steps: PositiveInt | None = None
    """Optimizer steps between copies, a multiple of `train.checkpoint_every_steps`; defaults to it."""

    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Share of the members that copy, and share of the members that are copied."""

    resample_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Probability that a setting is sampled again instead of changed slightly (times 1.2 or 0.8, an integer
    by at least 1; in a list, to the next value)."""


class ProxySearchSpec(Section):
    """A search on a small model first: the region of its best trials, with learning rates multiplied for the width of
    the base model, is what that then searches."""

    base_model: Annotated[str, Field(min_length=1)]
    """The proxy: a smaller base model, by name, path or Hub id as `base_model`. Its data is prepared anew, with its
    own tokenizer."""

    trials: Annotated[int, Field(ge=3, le=1_000_000)]
    """Number of settings to try on the proxy."""

    best_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Share of the proxy's trials, at least three, that span the region: of a range their lowest and highest value,
    each moved outwards by the usual distance between trials, of a list their choices."""


def _distinct(metrics: list[str]) -> list[str]:
    if not metrics or len(set(metrics)) < len(metrics):
        raise ValueError(f"got {metrics}; name one metric, or several different ones")
    if metrics[0] in COSTS:
        raise ValueError(
            f"got {metrics[0]} first; it only grows while a trial trains, so the first checkpoint of all would win; "
            f"name what the model should be good at first, as in [held_out_loss, {metrics[0]}]"
        )
    return metrics


def _constraints(texts: list[str]) -> list[str]:
    return [str(parse_constraint(text)) for text in texts]


def storage_file(storage: str) -> str:
    """The file of an Optuna storage; empty if it is in none."""
    file = storage.removeprefix(SQLITE)
    return "" if "://" in file else file


class TuneSpec(Section):
    """tune: a hyperparameter search over `train`; the winner becomes the checkpoint."""

    space: dict[str, Any] = Field(default={})
    """The search space: dotted fields of `train`, or `data.sources.N.weight`, each with a list of values such as
    `[8, 16, 32]` or a range: `{uniform: [0, 0.1]}`, `{loguniform: [1e-5, 1e-3]}`, or for integers `{int: [1, 64]}`,
    `{int: [8, 64], step: 8}` and `{logint: [1, 64]}`. With `when`, a field is searched only for some choices of
    another one: `{when: {train.adapter.method: dora}, loguniform: [1e-5, 1e-3]}`, `{when: ..., choices: [8, 16]}`."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Number of settings to try, including those that an earlier search measured."""

    time_minutes: Annotated[float, Field(gt=0.0, le=1_000_000.0)] | None = None
    """Time limit of the search in minutes; an interrupted search has the full limit again at each start."""

    min_gain: Annotated[float, Field(gt=0.0, le=1_000_000.0)] | None = Field(default=None, json_schema_extra=ADDED)
    """A price: the search ends when further trials, which read as many tokens as a whole training, are expected to
    improve the best value of the metric by less than this. Running trials go on to their ends."""

    max_cost: Annotated[float, Field(gt=0.0, le=1e9)] | None = Field(default=None, json_schema_extra=ADDED)
    """Maximum cost of the search in dollars, for the hours of the nodes that its trials use, with those of earlier
    starts. No trial begins that would end above it, and running trials end at their last checkpoint before it.
    Prices are those of the cluster file, or `cluster.price_per_hour`."""

    metric: Annotated[
        list[Metric], BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        AfterValidator(_distinct),
    ] = Field(default=["held_out_loss"])  # fmt: skip
    """What to compare, measured at each checkpoint: `held_out_loss`; with a chosen and a rejected or with labelled
    replies also `held_out_accuracy` and `held_out_margin`; with `distill` also `held_out_plain_loss` and
    `held_out_divergence`; `suite_NAME`, the score of a suite of `evaluate.suites`, to whose items the workers reply
    at each checkpoint. Further metrics may also be `seconds` of training or `peak_memory_gb` of a worker. With
    several (`[held_out_loss, seconds]`), the first decides the winner and what is stopped early, and the search
    reports the trials that no other beats in all. Fields of the space that enter a metric's own value are refused."""

    constraints: Annotated[list[str], AfterValidator(_constraints)] = Field(default=[], json_schema_extra=ADDED)
    """Bounds on what a checkpoint measures: `peak_memory_gb <= 20`, `tokens_per_second >= 500`, `seconds <= 3600`, or
    a held-out figure of the objective. A trial that breaks one is stopped at that checkpoint, which cannot win."""

    proxy: ProxySearchSpec | None = Field(default=None, json_schema_extra=ADDED)
    """Search on a small model first, with the same searcher and scheduler. `trials` and `time_minutes` are then those
    of the base model, which tries the proxy's best setting first and searches the region of its best trials;
    `min_gain` and `max_cost` are those of each of the two searches."""

    searcher: Annotated[
        Annotated[RandomSpec | GridSpec | TpeSpec | MixtureSearchSpec, Field(discriminator="name")],
        BeforeValidator(named),
    ] = RandomSpec()
    """How to choose settings: a name, or a mapping with `name` and the fields of that searcher."""

    scheduler: Annotated[
        Annotated[AllSpec | AshaSpec | HyperbandSpec | MedianSpec | PopulationSpec, Field(discriminator="name")],
        BeforeValidator(named),
    ] = AllSpec()
    """Which trials to continue: a name, or a mapping with `name` and the fields of that scheduler."""

    warm_start: list[Annotated[str, Field(min_length=1)]] = Field(default=[], json_schema_extra=ADDED)
    """Earlier trials that `searcher: tpe` learns from before its first one: searches in the store, by the names of
    their runs or by their keys, and Optuna studies, as `optuna:sqlite:///study.db#NAME`, or `optuna:` and the file
    of a journal. Trials out of the space are left out; the best trial of each source is tried first."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Random seed of the search."""

    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = Field(default=None, json_schema_extra=HOW)
    """Maximum number of concurrent trials. Left out, as many as the cluster's nodes have the capacity for; on a
    cluster that adds nodes on demand, set how many those nodes have the capacity for."""

    pack: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(default=1, json_schema_extra=HOW)
    """Number of LoRA trials that a worker group trains together: their forward and backward passes share the frozen
    base model. The results are those of trials on their own. `auto` packs trials with short steps, up to 1,024 tokens
    a pass in all, if this search can be packed."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = Field(default=2, json_schema_extra=HOW)
    """How often a trial that lost its workers continues from its last checkpoint before it counts as failed."""

    @model_validator(mode="after")
    def _mixture_decides_itself(self) -> "TuneSpec":
        if self.searcher.name != "mixture":
            return self
        own = ("space", "trials", "time_minutes", "min_gain", "max_cost")
        given = [name for name in own if getattr(self, name)]
        if given:
            raise ValueError(
                f"searcher mixture tries its own mixtures, searcher.proxies of them; leave out {' and '.join(given)}"
            )
        if self.scheduler.name != "none" or self.metric != ["held_out_loss"]:
            raise ValueError("searcher mixture compares held_out_loss at the end; leave out scheduler and metric")
        return self

    @model_validator(mode="after")
    def _proxy_finds_a_region(self) -> "TuneSpec":
        if self.proxy is not None and self.searcher.name == "mixture":
            raise ValueError("searcher mixture has small models of its own (searcher.proxies); leave out proxy")
        if self.proxy is not None and self.scheduler.name == "population":
            raise ValueError(
                "scheduler population changes settings during a training, so its best members span no region for "
                "proxy; use another scheduler"
            )
        return self

    @model_validator(mode="after")
    def _ends(self) -> "TuneSpec":
        if self.searcher.name == "mixture":
            return self
        limits = (self.trials, self.time_minutes, self.max_cost)
        if all(limit is None for limit in limits) and self.searcher.name != "grid":
            raise ValueError("has neither trials nor time_minutes nor max_cost; set one of them, or several")
        return self

    @model_validator(mode="after")
    def _only_tpe_learns(self) -> "TuneSpec":
        if self.warm_start and self.searcher.name != "tpe":
            raise ValueError(f"warm_start is for searcher tpe; {self.searcher.name} learns nothing from other trials")
        return self

    @model_validator(mode="after")
    def _population_is_possible(self) -> "TuneSpec":
        if self.scheduler.name == "population":
            if self.trials is None or self.trials < 2:
                raise ValueError("scheduler population needs trials, the number of its members, of 2 or more")
            if self.searcher.name != "random":
                raise ValueError(f"scheduler population draws its members at random; leave out {self.searcher.name}")
            if self.min_gain is not None:
                raise ValueError("scheduler population has all its members from the start; leave out min_gain")
        return self

    @model_validator(mode="after")
    def _a_population_has_one_metric(self) -> "TuneSpec":
        if len(self.metric) > 1 and self.scheduler.name == "population":
            raise ValueError("scheduler population copies trials by one metric, and metric names several; name one")
        return self
