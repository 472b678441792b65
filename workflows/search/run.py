"""Run the trials of a search with Ray Tune, and record them.

run_trials(spec, search, shared, progress)
"""

from collections.abc import Callable, Sequence

import ray.tune

from workflows.cluster.errors import StageCrashed, describe_error, is_users_mistake
from workflows.progress import Progress
from workflows.search.recorder import SearchRecorder
from workflows.search.records import Search
from workflows.search.trial import Shared, TrialRunner
from workflows.search.tuner import tuner_of
from workflows.spec import PipelineSpec
from workflows.spec.space import Values
from workflows.stage import StageFailed
from workflows.store import Store, StoreError


def run_trials(
    spec: PipelineSpec,
    search: Search,
    shared: Shared,
    progress: Progress,
    *,
    most_steps: Callable[[], int] = lambda: 1,
    earlier: Sequence[Values] = (),
    chosen: Sequence[Values] | None = None,
) -> None:
    """Train all trials, and record them in `search` and the store; raises StageFailed or StageCrashed.

    For `most_steps`, `earlier` and `chosen`, see `tuner_of`.
    """
    store = Store(shared.store)
    recorder = SearchRecorder(search, store, progress, shared.is_population)
    tuner = tuner_of(
        ray.tune.with_parameters(TrialRunner, shared=shared),
        spec,
        search,
        most_steps=most_steps,
        earlier=earlier,
        chosen=chosen,
        run_config=ray.tune.RunConfig(
            name="run",
            storage_path=shared.folder,
            storage_filesystem=store.filesystem,
            callbacks=[recorder],
            failure_config=ray.tune.FailureConfig(max_failures=shared.max_failures),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
        recorder.close()
    except (ray.tune.TuneError, OSError, StoreError) as error:
        recorder.abandon()
        if recorder.failure is not None:  # Tune raises an error of its own, with the text of this one
            raise StageFailed(f"tune: {recorder.failure}") from error
        if isinstance(error, OSError):  # Tune also writes to the store
            raise StageFailed(f"tune: {store.failure(error.filename or shared.folder, error)}") from error
        failure = StageFailed if is_users_mistake(error) else StageCrashed
        raise failure(f"tune: {describe_error(error)}") from error
