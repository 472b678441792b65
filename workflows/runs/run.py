"""The order of the stages, what each one depends on, and the loop that runs what is not up to date.

    prepare -> (reference ->) (tune ->) train -> evaluate -> optimize -> deploy

Nothing here imports Ray or torch: an up-to-date run says so at once.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from workflows.corpus.new_model import with_base
from workflows.progress import Progress
from workflows.runs.state import StageState, examine
from workflows.spec import PipelineSpec
from workflows.stage import STAGE_NAMES, Context, Stage, StageFailed, check_gate
from workflows.store import Artifact, Store, without_secrets


def run_stages(
    spec: PipelineSpec,
    store: Store,
    progress: Progress,
    last: str,
    connect: Callable[[Sequence[str]], None],
    force: bool = False,
) -> dict[str, Artifact]:
    """Bring every stage up to and including `last` up to date. Before the first that runs,
    `connect(stages)` is called with the names of all that will.

    Returns the artifacts by stage. Raises StageFailed; GateFailed after an evaluation that did not pass, unless
    `force`, if a stage after it was asked for.
    """
    states = examine(spec, store)
    wanted = STAGE_NAMES[: STAGE_NAMES.index(last) + 1]
    if last != "deploy" and last not in (state.stage.name for state in states):
        raise StageFailed(
            "tune: the pipeline file has no such section, so there is nothing to search"
            if last == "tune"
            else f"train.objective: {spec.train.objective.name} needs no {last} values; there is no such stage"
        )
    not_done = [state.stage.name for state in states if state.artifact is None]
    to_run = [name for name in (*not_done, "deploy") if name in wanted]
    if {"reference", "tune", "train"} & {*to_run}:
        from workflows.training.readings import known_reading

        known_reading(spec)  # before the corpus is made for a model that cannot learn from it
    record = _run_record(spec, last)
    done: dict[str, Artifact] = {}
    try:
        for state in states:
            if state.stage.name not in wanted:
                break
            artifact = state.artifact
            if artifact is None:
                if record["status"] != "running":
                    record["status"] = "running"
                    store.write_run(record)
                connect(to_run)
                artifact = _run_stage(state, spec, store, progress, done)
            else:
                progress.finish(state.stage.name, artifact.figures, word="up to date")
            done[state.stage.name] = artifact
            record["stages"][state.stage.name] = {"key": artifact.key, "seconds": artifact.seconds}
            if state.stage.name == "evaluate" != last and not force:
                check_gate(artifact, "evaluate", "use --force to deploy it anyway")
        ran = record["status"] == "running"
        record["status"] = "finished"
    except BaseException as error:
        ran = True
        record["status"] = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        record["error"] = str(error)
        raise
    finally:
        if ran:
            record["ended"] = _now()
            # What went wrong is told, also where a store that is full or away takes no record of it.
            with contextlib.suppress(OSError) if record["status"] != "finished" else contextlib.nullcontext():
                store.write_run(record)
    return done


def _run_stage(
    state: StageState, spec: PipelineSpec, store: Store, progress: Progress, done: dict[str, Artifact]
) -> Artifact:
    stage = state.stage
    with store.lock(stage.name, state.key, progress.note):
        finished = store.find(stage.name, state.key)
        if finished is not None:  # by another run, while this one waited
            progress.finish(stage.name, finished.figures, word="up to date")
            return finished
        progress.start(stage.name, f"{stage.summary}; {state.reason}")
        started, began = _now(), time.monotonic()
        inputs = {name: done[name] for name in stage.inputs if name in done}
        context = Context(
            with_base(spec, store, done["prepare"].key) if "prepare" in done else spec,
            store,
            state.key,
            inputs,
            progress,
        )
        figures = _run_module(stage, context)
        artifact = Artifact(
            stage=stage.name,
            key=state.key,
            pipeline=spec.name,
            inputs={name: artifact.key for name, artifact in inputs.items()},
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
    """Imported when it is needed: it brings a Ray library with it."""
    return importlib.import_module(f"workflows.stages.{stage.name}")


def _run_module(stage: Stage, context: Context) -> dict[str, Any]:
    from ray.data import DataContext
    from ray.exceptions import RayError

    from workflows.cluster.errors import StageCrashed, describe_error, is_users_mistake, root_cause

    # Else Ray Data's words alone reach the driver: what a function of a batch raised is lost on the way.
    DataContext.get_current().raise_original_map_exception = True
    try:
        figures: dict[str, Any] = _module_of(stage).run(context)
    except RayError as error:
        text = describe_error(error)
        if is_users_mistake(error):
            raise StageFailed(f"{stage.name}: {text}" if isinstance(root_cause(error), OSError) else text) from error
        raise StageCrashed(f"{stage.name}: {text}") from error
    return figures


def _run_record(spec: PipelineSpec, last: str) -> dict[str, Any]:
    now = _now()
    return {
        "run": f"{now[:19].replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:4]}",
        "pipeline": spec.name,
        "to": last,
        "status": "up to date",
        "started": now,
        "ended": None,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "spec": json.loads(without_secrets(spec.model_dump_json())),
        "stages": {},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("rayconteur", "ray", "torch", "transformers", "deepspeed", "peft", "openvino")
    return {name: importlib.metadata.version(name) for name in names}
