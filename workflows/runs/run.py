"""Run the stages that are not up to date, and record the run.

    prepare -> (reference ->) (tune ->) train -> evaluate -> optimize -> deploy

Nothing here imports Ray or torch, so an up-to-date run ends at once.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from workflows.corpus.new_model import with_base
from workflows.progress import Progress
from workflows.record import Record
from workflows.runs.page.live_server import live_page
from workflows.runs.state import StageState, examine
from workflows.spec import PipelineSpec
from workflows.spec.space import proxy_pipeline
from workflows.stage import Context, Stage, StageFailed, check_gate
from workflows.store import Artifact, RunRecord, RunStatus, StageEntry, Store, StoreError, without_secrets


def run_stages(
    spec: PipelineSpec,
    store: Store,
    progress: Progress,
    last: str,
    connect: Callable[[Sequence[str]], None],
    force: bool = False,
) -> dict[str, Artifact]:
    """Bring every stage up to and including `last` up to date. Before the first stage that runs, calls
    `connect(stages)` with the names of all that will run.

    Returns the artifacts by stage. Raises StageFailed; GateFailed after a scorecard that did not pass, unless
    `force`, if a later stage is requested.
    """
    states = examine(spec, store, last)
    if last not in (state.stage.name for state in states):
        raise StageFailed(
            "tune: the pipeline file has no such section, so there is nothing to search"
            if last == "tune"
            else f"train.objective: {spec.train.objective.name} needs no {last} values; there is no such stage"
        )
    to_run = [state.stage.name for state in states if state.artifact is None]
    if {"reference", "tune", "train"} & {*to_run}:
        from workflows.training.readings import known_reading

        known_reading(spec)  # before preparing data for a model that cannot be trained on them
    if "evaluate" in to_run and spec.evaluate.judge is not None:
        from workflows.judge.judge import read_key

        read_key(spec.evaluate.judge)  # before a training of hours
    done: dict[str, Artifact] = {}

    def bring_up_to_date(state: StageState) -> None:
        if state.artifact is None:
            connect(to_run)
            proxy = _search_on_proxy(spec, store, progress) if state.stage.name == "tune" else None
            done[state.stage.name] = _run_stage(state, spec, store, progress, done, proxy)
        else:
            progress.finish(state.stage.name, state.artifact.figures, up_to_date=True)
            done[state.stage.name] = state.artifact

    with _recorded(spec, store, last) as run:
        for state in states:
            if state.stage.name == "deploy":  # an endpoint ends with its cluster, so no record has it
                break
            if state.artifact is None:
                run.begin(state)
            bring_up_to_date(state)
            run.add(done[state.stage.name])
            if state.stage.name == "evaluate" != last and not force:
                check_gate(done["evaluate"], "evaluate", "use --force to deploy it anyway")
    if last == "deploy":
        bring_up_to_date(states[-1])
    return done


def _search_on_proxy(spec: PipelineSpec, store: Store, progress: Progress) -> Artifact | None:
    """The search on the small model, a run of its own in the same store; None without `tune.proxy`."""
    if spec.tune is None or spec.tune.proxy is None:
        return None
    proxy = spec.tune.proxy
    progress.note(f"tune: first a search on the proxy {proxy.base_model}: {proxy.trials} trials")
    done = run_stages(proxy_pipeline(spec), store, progress, "tune", lambda stages: None)
    progress.note(f"tune: the search on the proxy is done; next, the region of its best trials on {spec.base_model}")
    return done["tune"]


class _Run:
    """A run's record, written when a stage runs and when the run ends; never if all stages are up to date."""

    def __init__(self, record: RunRecord, store: Store) -> None:
        self._record, self._store = record, store

    def begin(self, state: StageState) -> None:
        """Record that a stage runs."""
        self._record = replace(self._record, status="running", begun={state.stage.name: state.key})
        self._store.write_run(self._record)

    def add(self, artifact: Artifact) -> None:
        """Record that a stage is done."""
        entry = StageEntry(key=artifact.key, seconds=artifact.seconds)
        self._record = replace(self._record, stages={**self._record.stages, artifact.stage: entry}, begun={})

    def finish(self) -> None:
        """Record that all stages are done."""
        if self._record.status == "running":
            self._store.write_run(replace(self._record, status="finished", ended=_now()))

    def fail(self, error: BaseException) -> None:
        """Record that the run ended with this error."""
        status: RunStatus = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        # Report the error even if the record cannot be written, because the store is full or unavailable.
        with contextlib.suppress(OSError, StoreError):
            self._store.write_run(replace(self._record, status=status, error=str(error), ended=_now()))


@contextlib.contextmanager
def _recorded(spec: PipelineSpec, store: Store, last: str) -> Iterator[_Run]:
    run = _Run(_new_record(spec, last), store)
    try:
        yield run
    except BaseException as error:
        run.fail(error)
        raise
    run.finish()


def _run_stage(
    state: StageState, spec: PipelineSpec, store: Store, progress: Progress, done: dict[str, Artifact],
    proxy: Artifact | None = None,
) -> Artifact:  # fmt: skip
    stage = state.stage
    with store.lock(stage.name, state.key, progress.note):
        finished = state.find(spec, store)
        if finished is not None:  # another run did it while this one waited
            progress.finish(stage.name, finished.figures, up_to_date=True)
            return finished
        context = Context(
            with_base(spec, store, done["prepare"].key) if "prepare" in done else spec,
            store,
            state.key,
            {name: done[name] for name in (*stage.inputs, *stage.also_reads) if name in done},
            progress,
            live_page,
            proxy,
        )
        started, began = _now(), time.monotonic()
        progress.start(stage.name, stage.detail(context) if stage.detail else f"{stage.summary}; {state.reason}")
        figures = _run_module(stage, context).to_json()
        artifact = Artifact(
            stage=stage.name,
            key=state.key,
            pipeline=spec.name,
            inputs={**state.inputs},
            settings=state.settings,
            figures=figures,
            versions=_versions(),
            started=started,
            seconds=round(time.monotonic() - began, 3),
        )
        store.finish(artifact)
        getattr(_module_of(stage), "tidy", lambda context: None)(context)
        progress.finish(stage.name, figures)
        return artifact


def _module_of(stage: Stage) -> Any:
    """Imported only when needed, because it imports a library of Ray."""
    return importlib.import_module(f"workflows.stages.{stage.name}")


def _run_module(stage: Stage, context: Context) -> Record:
    from ray.data import DataContext
    from ray.exceptions import RayError

    from workflows.cluster.errors import StageCrashed, describe_error, is_users_mistake, root_cause

    # Otherwise the driver gets only Ray Data's message, without the exception of a batch function.
    DataContext.get_current().raise_original_map_exception = True
    try:
        figures: Record = _module_of(stage).run(context)
    except RayError as error:
        text = describe_error(error)
        if is_users_mistake(error):
            raise StageFailed(f"{stage.name}: {text}" if isinstance(root_cause(error), OSError) else text) from error
        raise StageCrashed(f"{stage.name}: {text}") from error
    return figures


def _new_record(spec: PipelineSpec, last: str) -> RunRecord:
    now = _now()
    return RunRecord(
        run=f"{now[:19].replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:4]}",
        pipeline=spec.name,
        to=last,
        status="up to date",
        started=now,
        host=socket.gethostname(),
        process=os.getpid(),
        spec=json.loads(without_secrets(spec.model_dump_json())),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("rayconteur", "ray", "torch", "transformers", "deepspeed", "peft", "openvino")
    return {name: importlib.metadata.version(name) for name in names}
