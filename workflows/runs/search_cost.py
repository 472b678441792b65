"""What a search costs on the nodes of a cluster file: its trials, how many run at once, hours and dollars.

    cost = search_cost(spec, kinds, need, tokens, per_epoch)

Schedulers end trials early, and a limit of time or money ends a search: the cost is then an upper bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.base.sizes import known_sizes
from workflows.cluster.capacity import trials_within
from workflows.cluster.cluster_file import NodeKind
from workflows.cluster.fit import UTILISATION, Need, fit_stage, hours, in_all
from workflows.record import Record, optional
from workflows.spec import MixtureSearchSpec, PipelineSpec, TrainSpec, TuneSpec
from workflows.spec.space import combinations, trials_wanted, with_values

# Fields that change how many tokens a trial reads.
_LENGTHS = {"train.epochs", "train.max_steps", "train.batch_tokens", "train.gradient_accumulation"}

_CANDIDATES = 3
"""mixtures that the base model tries after the small models"""


@dataclass(frozen=True, kw_only=True)
class SearchCost(Record):
    """The time and the price of a search; None where the cluster file does not state rates or prices."""

    trials: int | None
    """None if only time ends the search, and a trial's time is not known"""
    at_once: int
    hours_per_trial: float | None
    price_per_trial: float | None
    hours: float | None
    """of the whole search, as `price`"""
    price: float | None
    at_most: str | None = optional()
    """why it may cost less"""
    small_models: int | None = optional()
    """trained before the trials, by the searcher `mixture`"""
    groups: int | None = optional()
    """of workers, which train packed trials"""


def search_cost(
    spec: PipelineSpec, kinds: Sequence[NodeKind], need: Need, tokens: int, per_epoch: int, pack: int = 1
) -> SearchCost:
    """The cost of the whole search. `need` is that of one trial, which fits on the nodes; the workers of each train
    `pack` trials together. For `tokens` and `per_epoch`, see `longest_trial`.
    """
    assert spec.tune is not None
    tune = spec.tune
    longest, differs = longest_trial(spec, tokens, per_epoch)
    trials = _CANDIDATES if isinstance(tune.searcher, MixtureSearchSpec) else trials_wanted(tune)
    capacity = in_all(kinds, need) // need.workers
    at_once = trials_within(tune, pack * capacity, trials)
    groups = min(capacity, at_once)
    alone, price_of_nodes = _rate(kinds, need, groups, training_operations(spec, longest))
    price_per_hour = spec.cluster.price_per_hour or price_of_nodes
    # Packed trials share the rate of their workers: each takes longer, and more of them run at once.
    took = None if alone is None else alone * at_once / groups
    whole = None if alone is None or trials is None else alone * math.ceil(trials / groups)
    price = None if alone is None or price_per_hour is None else price_per_hour / groups * alone
    total = None if price is None or trials is None else price * trials
    limit, ends_it = _limit(tune, price_per_hour)
    is_over = limit is not None and (whole is None or limit < whole)
    if limit is not None and is_over:
        if trials is None and alone is not None:
            trials = max(1, math.floor(limit / alone)) * groups
        whole, total = limit, None if price_per_hour is None else price_per_hour * limit
    cost = SearchCost(
        trials=trials,
        at_once=at_once,
        hours_per_trial=took,
        price_per_trial=price,
        hours=whole,
        price=total,
        at_most=_at_most(tune, differs, ends_it if is_over else ""),
        groups=groups if pack > 1 else None,
    )
    return _with_small_models(cost, spec, kinds, need) if isinstance(tune.searcher, MixtureSearchSpec) else cost


def _limit(tune: TuneSpec, price_per_hour: float | None) -> tuple[float | None, str]:
    """The hours after which a limit ends the search, None without one; and its field."""
    limits = []
    if tune.time_minutes is not None:
        limits.append((tune.time_minutes / 60, "tune.time_minutes"))
    if tune.max_cost is not None and price_per_hour:
        limits.append((tune.max_cost / price_per_hour, "tune.max_cost"))
    return min(limits, default=(None, ""))


def longest_trial(spec: PipelineSpec, tokens: int, per_epoch: int) -> tuple[int, bool]:
    """The tokens of the longest trial in the space, and whether trials differ in length. `tokens` are those of a
    training with the settings of `train`, which reads `per_epoch` of them in an epoch.
    """
    assert spec.tune is not None
    if not _LENGTHS & {*spec.tune.space}:
        return tokens, False
    lengths = {_tokens(with_values(spec, values).train, per_epoch) for values in combinations(spec)}
    return max(lengths), len(lengths) > 1


def training_operations(spec: PipelineSpec, tokens: int) -> float | None:
    """The floating-point operations of one training, as in models/kernels/flops.py: 6 per token and trained weight, 4
    if frozen; only the experts that a token uses. None until the base model is on this machine.
    """
    sizes = known_sizes(spec.base_model)
    if sizes is None:
        return None
    return float((6 if spec.train.adapter is None else 4) * sizes["active_parameters"] * tokens)


def _tokens(train: TrainSpec, per_epoch: int) -> int:
    whole = per_epoch * train.epochs
    return max(1, int(min(whole, train.max_steps * _step_tokens(train)) if train.max_steps else whole))


def _step_tokens(train: TrainSpec) -> int:
    return train.pass_tokens * train.passes * train.max_workers


def _rate(
    kinds: Sequence[NodeKind], need: Need, groups: int, operations: float | None
) -> tuple[float | None, float | None]:
    """The hours of one trial on its own, and the price of an hour of all nodes that so many worker groups use."""
    fit = fit_stage(replace(need, workers=need.workers * groups), kinds)
    took = None if operations is None else hours(operations, replace(fit, need=need), kinds)
    return took, fit.price_per_hour


def _at_most(tune: TuneSpec, differs: bool, ends_it: str) -> str | None:
    reasons = []
    if tune.scheduler.name in ("asha", "hyperband", "median"):
        reasons.append(f"{tune.scheduler.name} ends trials early")
    if differs:
        reasons.append("each trial counted as the longest of the space")
    if ends_it:
        reasons.append(f"{ends_it} ends it")
    return "; ".join(reasons) or None


def _with_small_models(cost: SearchCost, spec: PipelineSpec, kinds: Sequence[NodeKind], need: Need) -> SearchCost:
    """With the small models of a search over mixtures, which train first, with one worker each."""
    assert spec.tune is not None
    searcher, sizes = spec.tune.searcher, known_sizes(spec.base_model)
    assert isinstance(searcher, MixtureSearchSpec)
    cost = replace(cost, small_models=searcher.proxies)
    if sizes is None:
        return cost
    proxy, width = searcher.proxy, searcher.proxy.hidden_size
    weights = sizes["vocab_size"] * width + 16 * proxy.num_layers * width**2
    operations = 6.0 * weights * proxy.max_steps * spec.train.pass_tokens * spec.train.passes
    one = replace(need, workers=1, memory_gb=0.0, gpu_memory_gb=0.0)
    at_once = trials_within(spec.tune, in_all(kinds, one), searcher.proxies)
    took, price_per_hour = _rate(kinds, one, at_once, operations)
    if took is None or cost.hours is None:
        return cost
    price = None
    if price_per_hour is not None and cost.price is not None:
        price = cost.price + price_per_hour / at_once * took * searcher.proxies
    return replace(cost, hours=cost.hours + took * math.ceil(searcher.proxies / at_once), price=price)


def cost_lines(cost: SearchCost) -> list[str]:
    """The cost as lines of text."""
    before = f"{cost.small_models} small models, then " if cost.small_models else ""
    count = "1 trial" if cost.trials == 1 else f"{cost.trials:,} trials" if cost.trials else "trials"
    packed = f", packed in {cost.groups} worker group{'s' if cost.groups > 1 else ''}" if cost.groups else ""
    lines = [f"{before}{count}, at most {cost.at_once} at once{packed}"]
    if cost.hours_per_trial is None and cost.hours is None:
        return [f"{lines[0]}; their time is not known: the cluster file states no rate (tflops) of these nodes"]
    if cost.hours_per_trial is not None:
        each = f"a trial: about {_hours(cost.hours_per_trial)}{_dollars(cost.price_per_trial)}"
        lines.append(f"{each}, at {UTILISATION:.0%} of the GPUs' rate")
    if cost.hours is not None:
        bound = f", at most ({cost.at_most})" if cost.at_most else ""
        lines.append(f"the search: about {_hours(cost.hours)}{_dollars(cost.price)}{bound}")
    return lines


def _hours(value: float) -> str:
    return f"{value:,.1f} hours" if value >= 0.1 else f"{value * 60:.1f} minutes"


def _dollars(value: float | None) -> str:
    return "" if value is None else f" and ${value:,.2f}"
