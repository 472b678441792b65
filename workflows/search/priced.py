"""Ends a search when further trials are expected to gain too little (`tune.min_gain`)."""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from workflows.search.gain import Gain
from workflows.search.records import Search, compared_badness
from workflows.search.trial import event_of
from workflows.spec.space import Values


class UntilGainIsSmall(Searcher):  # type: ignore[misc]
    """Another searcher, until further trials are expected to gain less than `min_gain`; running ones go on."""

    def __init__(self, searcher: Any, min_gain: float, metric: str, search: Search) -> None:
        super().__init__()
        self._searcher, self._min_gain, self._decisive, self._search = searcher, min_gain, metric, search
        self._gain = Gain()
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial; ends the search."""
        expected = self._gain.expected()
        if expected is not None:
            self._search.expected_gain = expected
            if expected < self._min_gain:
                self._search.min_gain = self._min_gain
                return Searcher.FINISHED
        self._numbers[trial_id] = len(self._numbers)
        return self._searcher.suggest(trial_id)

    def add(self, trial_id: str, values: Values) -> None:
        """A trial that the searcher has not chosen."""
        self._numbers[trial_id] = len(self._numbers)
        self._searcher.add(trial_id, values)

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Called by Tune with a report, unless the trial ends with it."""
        self._note(trial_id, result)
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end, with its last report or failure if there is one."""
        if result:
            self._note(trial_id, result)
        self._gain.end(self._numbers[trial_id])
        self._searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Called by Tune to keep a state."""

    def _note(self, trial_id: str, result: Mapping[str, object]) -> None:
        report = event_of(result).report
        if report is not None:
            tokens = report.figures["num_tokens"]
            value = compared_badness(self._decisive, report.figures, self._search.constraints)
            self._gain.report(self._numbers[trial_id], tokens, tokens * report.num_steps / report.step, value)
