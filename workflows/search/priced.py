"""Searchers that end a search for its price: `tune.min_gain` and `tune.max_cost`."""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from workflows.search.around import Around
from workflows.search.budget import Budget
from workflows.search.gain import Gain
from workflows.search.records import Search, compared_badness
from workflows.search.trial import event_of
from workflows.spec.space import Values


class UntilGainIsSmall(Around):
    """Another searcher, until further trials are expected to gain less than `min_gain`; running ones go on."""

    def __init__(self, searcher: Any, min_gain: float, metric: str, search: Search) -> None:
        super().__init__(searcher)
        self._min_gain, self._decisive, self._search = min_gain, metric, search
        self._gain = Gain()
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial; ends the search."""
        expected = self._gain.expected()
        if expected is not None:
            self._search.expected_gain = expected
            if expected < self._min_gain:
                self._search.min_gain = self._min_gain
                return Searcher.FINISHED
        suggested = super().suggest(trial_id)
        if isinstance(suggested, dict):
            self._numbers[trial_id] = len(self._numbers)
        return suggested

    def add(self, trial_id: str, values: Values) -> None:
        """A trial that the searcher has not chosen."""
        self._numbers[trial_id] = len(self._numbers)
        super().add(trial_id, values)

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Called by Tune with a report, unless the trial ends with it."""
        self._note(trial_id, result)
        super().on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end, with its last report or failure if there is one."""
        if result:
            self._note(trial_id, result)
        self._gain.end(self._numbers[trial_id])
        super().on_trial_complete(trial_id, result, error)

    def _note(self, trial_id: str, result: Mapping[str, object]) -> None:
        report = event_of(result).report
        if report is not None:
            tokens = report.figures["num_tokens"]
            value = compared_badness(self._decisive, report.figures, self._search.constraints)
            self._gain.report(self._numbers[trial_id], tokens, tokens * report.num_steps / report.step, value)


class WithinCost(Around):
    """Another searcher, until another trial would bring the search above its maximum cost."""

    def __init__(self, searcher: Any, budget: Budget, search: Search) -> None:
        super().__init__(searcher)
        self._budget, self._search = budget, search
        self._chosen = 0
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial; ends the search."""
        budget = self._budget
        if self._chosen not in budget.known and not budget.allows_another():
            if self._running and budget.may_allow_another():
                return None  # Tune asks again
            self._search.cost_with_another = budget.cost_with_another()
            return Searcher.FINISHED
        suggested = super().suggest(trial_id)
        if isinstance(suggested, dict):
            self._begin(trial_id, self._chosen in budget.known)
            self._chosen += 1
        return suggested

    def add(self, trial_id: str, values: Values) -> None:
        """A trial that the searcher has not chosen; it begins also above the maximum cost, and ends as others do."""
        super().add(trial_id, values)
        self._begin(trial_id, is_known=False)

    def _begin(self, trial_id: str, is_known: bool) -> None:
        self._running.add(trial_id)
        self._budget.begin(trial_id, is_known)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end, with its last report or failure if there is one."""
        self._running.discard(trial_id)
        self._budget.end(trial_id, is_new=not result or not event_of(result).was_known)
        super().on_trial_complete(trial_id, result, error)


class StopsAtCost:
    """Tune's stopper: a trial ends at the checkpoint after which another one would be above the maximum cost."""

    def __init__(self, budget: Budget, search: Search) -> None:
        self._budget, self._search = budget, search
        self._known: dict[str, int] = {}
        """the last step of each trial that an earlier search has recorded"""

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        """Called by Tune with each report; whether the trial ends."""
        event = event_of(result)
        if event.known:
            self._known[trial_id] = max(report.step for report in event.known)
        if event.report is None:
            return False
        trained = event.report.figures.get("seconds", 0.0)
        self._budget.report(trial_id, event.report.step, event.report.num_steps, trained, event.was_known)
        if event.was_known and event.report.step < self._known.get(trial_id, 0):
            return False
        is_over = event.report.step < event.report.num_steps and not self._budget.allows_more(trial_id)
        if is_over:
            self._search.stopped_by_cost = True
        return is_over
