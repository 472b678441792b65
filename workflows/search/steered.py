"""A searcher for Ray Tune whose search people steer while it runs."""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from workflows.search.around import Around
from workflows.search.steering import Steering
from workflows.search.trial import TOGETHER, values_of


class SteeredSearcher(Around):
    """Another searcher, and the trials that people add. It ends when no trial runs: until then, some may be added."""

    def __init__(self, searcher: Any, wanted: int | None, steering: Steering) -> None:
        """`searcher` also has `add(trial_id, values)`, for a trial that it has not chosen; `wanted`: how many it
        chooses at most.
        """
        super().__init__(searcher)
        self._wanted, self._steering = wanted, steering
        self._chosen = 0
        self._is_over = False

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial; ends the search."""
        with self._steering.held():
            values = self._steering.due(self._is_over)
            if values is None and not self._is_over:
                suggested = self._next_of_searcher(trial_id)
                if suggested != Searcher.FINISHED:
                    if suggested is not None:
                        self._chosen += 1
                        self._steering.begin(trial_id, values_of(suggested))
                    return suggested
                self._is_over = True
                values = self._steering.due(searcher_is_over=True)
            if values is not None:
                self._searcher.add(trial_id, values)
                self._steering.begin(trial_id, values)
                return {TOGETHER: values}
            if not self._steering.is_quiet:
                return None
            self._steering.close("the search has tried all its trials and ends now; to go on, raise tune.trials")
            return Searcher.FINISHED

    def _next_of_searcher(self, trial_id: str) -> Any:
        return Searcher.FINISHED if self._chosen == self._wanted else self._searcher.suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end, with its last report or failure if there is one."""
        self._steering.end(trial_id)
        super().on_trial_complete(trial_id, result, error)
