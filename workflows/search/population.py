"""The scheduler `population`: population-based training that makes the same copies again after an interruption."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from workflows.search.schedulers import comparable
from workflows.search.trial import TOGETHER, values_of
from workflows.spec import PopulationSpec
from workflows.spec.space import Choice, Dimension, Range, Values

_FACTORS = (1.2, 0.8)
_OTHER_WAY = {1.2: 0.8, 0.8: 1.2}
# How often other settings are drawn for a copy whose training would end where it begins.
_MAX_DRAWS = 20


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """Synchronous population-based training. Members may fail, and end at different steps; the others go on."""

    def __init__(
        self,
        spec: PopulationSpec,
        seed: int,
        dimensions: Mapping[str, Dimension],
        every: int,
        steps_of: Callable[[Values], int],
    ) -> None:
        """`every`: steps between copies; `steps_of`: the number of steps of a training with these settings."""
        self._seed, self._dimensions, self._steps_of = seed, dimensions, steps_of
        self._probability, self._step = spec.resample_probability, 0
        self._last: dict[Any, Mapping[str, Any]] = {}
        """the latest result of each member"""
        super().__init__(
            time_attr="step",
            perturbation_interval=every,
            quantile_fraction=spec.quantile,
            custom_explore_fn=lambda config: {TOGETHER: self._explored(values_of(config))},
            log_config=False,
            synch=True,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> Any:
        """Called by Tune with a report. Random numbers depend on its step alone, so a resumed search repeats them."""
        random.seed(f"{self._seed} {result['step']}")
        np.random.seed(random.getrandbits(32))
        self._step = max(self._step, result["step"])
        self._last[trial] = comparable(self.metric, result)
        controller = _WithoutEnded(tune_controller)
        if len(controller.get_live_trials()) == 1 and trial.status != Trial.PAUSED:  # nobody to wait for or to copy
            return TrialScheduler.CONTINUE
        return super().on_trial_result(controller, trial, self._last[trial])

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Called by Tune for the next member to continue.

        Members wait for the last of them to report, which makes the copies. If it fails or ends instead, Tune's would
        wait for ever (ray-project/ray#12122, #23424): here, one of those that wait reports again.
        """
        chosen = super().choose_trial_to_run(tune_controller)
        live = _WithoutEnded(tune_controller).get_live_trials()
        if chosen is not None or not live or any(trial.status != Trial.PAUSED for trial in live):
            return chosen
        latest = max(live, key=lambda trial: self._last[trial]["step"])
        self.on_trial_result(tune_controller, latest, self._last[latest])
        return super().choose_trial_to_run(tune_controller)

    def _explored(self, values: Values) -> Values:
        """Settings for a copy of a member: each of the member's drawn anew or changed a little."""
        for _ in range(_MAX_DRAWS):
            found = {field: self._changed(dimension, values[field]) for field, dimension in self._dimensions.items()}
            if self._steps_of(found) > self._step:
                return found
        return values

    def _changed(self, dimension: Dimension, value: Any) -> Any:
        is_new = random.random() < self._probability
        if isinstance(dimension, Choice):
            return random.choice(dimension.values) if is_new else shifted(dimension, value, random.choice((-1, 1)))
        return _sample(dimension) if is_new else scaled(dimension, value, random.choice(_FACTORS))


class _WithoutEnded:
    """Tune's controller, whose live trials would include those that have failed."""

    def __init__(self, tune_controller: Any) -> None:
        self._tune_controller = tune_controller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tune_controller, name)

    def get_live_trials(self) -> list[Any]:
        """Those that can still report."""
        return [trial for trial in self._tune_controller.get_live_trials() if not trial.is_finished()]


def shifted(choice: Choice, value: Any, step: int) -> Any:
    """The next value of the list to this side; from its end, to the other."""
    index = choice.values.index(value) + step
    if not 0 <= index < len(choice.values):
        index -= 2 * step
    return choice.values[index] if 0 <= index < len(choice.values) else value


def scaled(dimension: Range, value: float, factor: float) -> float:
    """The value times a factor; an integer changes by at least 1, and a value at an end of the range goes inwards."""
    for each in (factor, _OTHER_WAY[factor]):
        moved = value * each
        if dimension.is_whole and dimension.nearest(moved) == value:
            moved = value + (dimension.step if each > 1 else -dimension.step)
        if (found := dimension.nearest(moved)) != value:
            return found
    return value


def _sample(dimension: Range) -> float:
    """A value drawn by numpy's global generator, as Ray Tune draws it: copies in a store are found again."""
    low, high = dimension.low, dimension.high
    if dimension.is_whole:
        drawn = (ray.tune.lograndint if dimension.is_log else ray.tune.randint)(int(low), int(high) + 1).sample()
    else:
        drawn = (ray.tune.loguniform if dimension.is_log else ray.tune.uniform)(low, high).sample()
    return dimension.nearest(drawn)
