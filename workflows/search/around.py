"""A searcher for Ray Tune around another one."""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from workflows.spec.space import Values


class Around(Searcher):  # type: ignore[misc]
    """Does what another searcher does. That one also has `add`."""

    def __init__(self, searcher: Any) -> None:
        super().__init__()
        self._searcher = searcher

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Called by Tune for the settings of the next trial."""
        return self._searcher.suggest(trial_id)

    def add(self, trial_id: str, values: Values) -> None:
        """A trial that the searcher has not chosen."""
        self._searcher.add(trial_id, values)

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Called by Tune with a report, unless the trial ends with it."""
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Called by Tune at a trial's end, with its last report or failure if there is one."""
        self._searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Called by Tune to keep a state."""
