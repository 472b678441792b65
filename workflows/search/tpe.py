"""The searcher `tpe`: random settings first, then those that Optuna's TPE expects to be good.

Every draw belongs to the seed and the number of the trial: a search that is interrupted or widened goes on with new
draws, and a random one does not depend on what runs beside it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from workflows.search.draws import Draws
from workflows.search.records import badness, compared_badness
from workflows.search.studies import direction_of, distribution_of
from workflows.search.trial import TOGETHER, event_of
from workflows.search.warm_start import Prior
from workflows.spec import TpeSpec
from workflows.spec.space import Dimension, Values, active, is_inside

# How often TPE may suggest settings that the search has tried before random ones are taken instead.
_MAX_REPEATS = 8


class TpeSearch(Searcher):  # type: ignore[misc]
    """Chooses settings, none twice. A trial counts with its best report by the first metric, as for the winner."""

    def __init__(
        self,
        spec: TpeSpec,
        seed: int,
        dimensions: Mapping[str, Dimension],
        metrics: Sequence[str],
        earlier: Mapping[int, Values],
        constraints: Sequence[str] = (),
        priors: Sequence[Prior] = (),
    ) -> None:
        """`earlier`: settings that a search before this one chose, by the number of the trial; `priors`: the trials
        of other searches.
        """
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._spec, self._seed, self._metrics, self._earlier = spec, seed, metrics, earlier
        self._dimensions, self._constraints = dimensions, constraints
        self._distributions = {field: distribution_of(dimension) for field, dimension in dimensions.items()}
        self._draws = Draws(dimensions, seed)
        self._priors = priors
        comparable = [prior.best for prior in priors if prior.is_comparable]
        self._best_known = [min(values) for values in zip(*comparable, strict=True)]
        """the smallest badness of each metric that is comparable; empty: none"""
        self._study = self._new_study()
        self._num_told = len(self._study.get_trials(deepcopy=False))
        self._tried: set[str] = set()
        self._begun = self._measured = 0
        self._created = self._num_told
        """trials in the study"""
        self._asked: Any = None
        """the trial of the study with TPE's latest settings, until the search takes these or others"""
        self._running: dict[str, int] = {}
        """the number in the study of each running trial, by Tune's id"""
        self._best: dict[str, tuple[float, list[float]]] = {}
        """of each running trial the badness of its best report, and the metrics in it"""

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial; ends the search when the space is used up."""
        number = self._begun
        values = self._earlier.get(number)
        if values is None or not self._is_new(values):
            known = self._num_told + min(number, self._measured)
            asked = self._ask(number) if known >= self._spec.startup_trials else None
            values = asked or self._drawn(number)
        if values is None:
            return Searcher.FINISHED
        self._begin(trial_id, values)
        self._begun += 1
        return {TOGETHER: values}

    def add(self, trial_id: str, values: Values) -> None:
        """A trial that TPE has not chosen. It counts like the others, if its values are in the space."""
        if all(is_inside(self._dimensions[field], value) for field, value in values.items()):
            self._begin(trial_id, values)

    def _begin(self, trial_id: str, values: Values) -> None:
        self._tried.add(self._named(values))
        self._running[trial_id] = self._number_of(values)

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Called by Tune with a report, unless the trial ends with it."""
        report = event_of(result).report
        if trial_id not in self._running or report is None:
            return
        values = [report.figures.get(metric, math.nan) for metric in self._metrics]
        value = compared_badness(self._metrics[0], report.figures, self._constraints)
        if all(map(math.isfinite, values)) and value < self._best.get(trial_id, (math.inf, []))[0]:
            self._best[trial_id] = value, values

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end, with its last report or failure if there is one."""
        if trial_id not in self._running:
            return
        if result:
            self.on_trial_result(trial_id, result)
        number = self._running.pop(trial_id)
        if (best := self._best.pop(trial_id, None)) is not None:
            self._measured += 1
            self._study.tell(number, best[1])
            self._note_best(best[1])
        elif not result or event_of(result).failures:
            self._study.tell(number, state=TrialState.FAIL)  # lost workers say nothing of the settings
        else:
            self._study.tell(number, state=TrialState.PRUNED)  # worse than every trial with a value

    def save(self, checkpoint_path: str) -> None:
        """Called by Tune to keep a state."""

    def _number_of(self, values: Values) -> int:
        """The number in the study of a new trial with these settings."""
        asked, self._asked = self._asked, None
        if asked is not None and asked.params == values:
            return int(asked.number)
        self._give_up(asked)
        kept = {field: each for field, each in self._distributions.items() if field in values}
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=values, distributions=kept))
        self._created += 1
        return self._created - 1

    def _give_up(self, asked: Any) -> None:
        if asked is not None:
            self._study.tell(asked, state=TrialState.FAIL)

    def _is_new(self, values: Values) -> bool:
        return self._named(values) not in self._tried

    def _named(self, values: Values) -> str:
        return repr([values.get(field) for field in self._distributions])

    def _drawn(self, number: int) -> Values | None:
        """The random settings of a trial; None if the space is used up."""
        own = itertools.islice(self._draws, number, None)
        return next(filter(self._is_new, itertools.chain(own, self._draws)), None)

    def _ask(self, number: int) -> Values | None:
        """TPE's settings; None if TPE finds only settings that were tried."""
        for attempt in range(_MAX_REPEATS):
            self._give_up(self._asked)
            own_seed = np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=int(own_seed[0]),
                multivariate=self._spec.multivariate,
                n_startup_trials=0,
                constant_liar=True,  # running trials count as bad, so that concurrent trials differ
            )
            self._asked = self._study.ask(self._distributions)
            self._created += 1
            values = active(self._dimensions, self._asked.params)
            if self._is_new(values):
                return values
        return None

    def _new_study(self) -> Any:
        """Begins with the trials of other searches."""
        study = optuna.create_study(directions=[direction_of(metric) for metric in self._metrics])
        for prior in self._priors:
            for values, told in prior.shifted(self._best_known or [0.0] * len(self._metrics)):
                metrics = [badness(metric, each) for metric, each in zip(self._metrics, told, strict=True)]
                kept = {field: self._distributions[field] for field in values}
                study.add_trial(create_trial(values=metrics, params=values, distributions=kept))
        return study

    def _note_best(self, values: Sequence[float]) -> None:
        """Trials that are not comparable are told anew when the best of this search has changed."""
        found = [badness(metric, value) for metric, value in zip(self._metrics, values, strict=True)]
        best = [*map(min, found, self._best_known or found)]
        if best == self._best_known:
            return
        self._best_known = best
        if all(prior.is_comparable for prior in self._priors):
            return
        own = self._study.get_trials(deepcopy=False)[self._num_told :]
        self._study = self._new_study()
        self._study.add_trials(own)
