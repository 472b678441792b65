"""How much each searched value mattered, by PED-ANOVA: how the best trials' values differ from those of all trials.

importances(search)    # {"train.learning_rate": 0.8, "train.lora.rank": 0.2}
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workflows.search.records import Search, badness
from workflows.spec.space import Choice, Dimension, dimension_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_MIN_TRIALS = 4
# The best trials are the best tenth, as in the paper; more in small searches, which need enough for a density.
_BEST_SHARE, _MIN_BEST, _MAX_BEST_SHARE = 0.1, 5, 0.5


def importances(search: Search) -> dict[str, float] | None:
    """Each field's share of the importance (the sum is 1), the largest first; None if the trials do not determine it.

    Uses each trial's best report by the first metric, also of trials that were stopped early.
    """
    trials = [(trial.values, trial.best(search.metrics[0])) for trial in search.trials]
    measured = [
        (values, badness(search.metrics[0], report.figures[search.metrics[0]]))
        for values, report in trials
        if report and math.isfinite(report.figures[search.metrics[0]])
    ]
    if len(measured) < _MIN_TRIALS or len({value for _, value in measured}) == 1:
        return None
    # A field that is equal in all trials, or missing in some, cannot be compared.
    fields = [field for field in search.space if all(field in values for values, _ in measured)]
    found = {field: [values[field] for values, _ in measured] for field in fields}
    varied = {field: values for field, values in found.items() if any(value != values[0] for value in values)}
    if not varied:
        return None
    dimensions = {field: dimension_of(search.space[field]) for field in varied}
    return _evaluate(dimensions, varied, [value for _, value in measured])


def _evaluate(
    dimensions: Mapping[str, Dimension], varied: Mapping[str, Sequence[object]], badnesses: Sequence[float]
) -> dict[str, float] | None:
    import optuna

    distributions = {field: _distribution(dimensions[field], values) for field, values in varied.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # suppresses optuna's message about the new study
    study = optuna.create_study()
    for index, value in enumerate(badnesses):
        parameters = {field: _parameter(dimensions[field], values[index]) for field, values in varied.items()}
        study.add_trial(optuna.trial.create_trial(value=value, params=parameters, distributions=distributions))
    share = max(_BEST_SHARE, min(_MAX_BEST_SHARE, _MIN_BEST / len(badnesses)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few trials; the page shows that the shares are rough
        shares: dict[str, float] = evaluator.evaluate(study)
    total = sum(shares.values())
    if not total:
        return None
    return {field: value / total for field, value in sorted(shares.items(), key=lambda pair: -pair[1])}


def _distribution(dimension: Dimension, values: Sequence[Any]) -> "BaseDistribution":
    """What optuna calls a dimension, made wide enough for values that a population has moved outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        known = dict.fromkeys(_parameter(dimension, value) for value in [*dimension.values, *values])
        return CategoricalDistribution(list(known))
    low, high = min(dimension.low, *values), max(dimension.high, *values)
    if dimension.is_whole:
        return IntDistribution(int(low), int(high), log=dimension.is_log)
    return FloatDistribution(low, high, log=dimension.is_log)


def _parameter(dimension: Dimension, value: Any) -> Any:
    """A choice as text, because it may be a list, and because true must differ from 1."""
    return json.dumps(value) if isinstance(dimension, Choice) else value
