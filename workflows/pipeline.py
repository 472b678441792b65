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
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from models import base
from models.files import open_uri
from workflows.progress import Progress
from workflows.sources import SourceError, SourceFile, find_files
from workflows.spec import NEW_MODEL, NewModelSpec, PipelineSpec
from workflows.spec_train import AdversarialSpec, DistillRepliesSpec, DistillSpec, SpinSpec, TrainSpec
from workflows.store import Artifact, Store, content_key, fingerprint, without_secrets

if TYPE_CHECKING:
    from models.packing import StepPlan  # at run time it would import torch


NEW_BASE = "base"
"""where in prepare's artifact a new model's first weights and its tokenizer are"""

CHAT_TEMPLATE = "chat_template.jinja"
"""where in prepare's artifact the template of `data.chat_template` is"""


class StageFailed(ValueError):
    """A stage that could not do its work; the text is for the user."""


class GateFailed(StageFailed):
    """The scorecard says that the checkpoint is not good enough."""


@dataclass(frozen=True)
class Context:
    """What a stage gets: the spec, where to write, the artifacts before it, and the display."""

    spec: PipelineSpec
    store: Store
    key: str
    inputs: dict[str, Artifact]
    progress: Progress


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    `workflows/<name>.py` has its `run(context) -> figures`, and `tidy(context)` where something can be let go of
    once the artifact is whole.
    """

    name: str
    version: int
    """raised when the stage's output changes its meaning"""
    inputs: tuple[str, ...]
    """the stages whose artifacts it reads, of those that the pipeline has"""
    settings: Callable[[PipelineSpec], dict[str, Any]]
    """what of the spec, and of the files it names, decides the output"""
    summary: str
    is_needed: Callable[[PipelineSpec], bool] = lambda spec: True
    """whether a pipeline has this stage at all"""

    @property
    def module(self) -> Any:
        """The stage's module, imported when it is needed: it brings a Ray library with it."""
        return importlib.import_module(f"workflows.{self.name}")


def source_files(spec: PipelineSpec) -> list[SourceFile]:
    """The files behind `data.sources`, in order; raises StageFailed for a source without files."""
    try:
        return find_files(spec)
    except SourceError as error:
        raise StageFailed(str(error)) from error


def _prepare_settings(spec: PipelineSpec) -> dict[str, Any]:
    files = [[file.fingerprint, file.limit] for file in source_files(spec)]
    section = {**spec.data.result_fields(), "sources": files}
    if spec.data.chat_template is not None:
        section["chat_template"] = _fingerprint_of("data.chat_template", spec.data.chat_template)
    examples = spec.train.objective.examples
    return {"data": section, "base_model": _base(spec), "examples": examples}


def _base(spec: PipelineSpec) -> Any:
    """What decides the base model's weights and tokens; of a new one also the data, which `prepare` depends on."""
    if spec.base_model == NEW_MODEL:
        return {NEW_MODEL: spec.new_model.result_fields()}
    return base.identity(spec.base_model)


def with_base(spec: PipelineSpec, store: Store, prepared: str) -> PipelineSpec:
    """`spec` as stages after `prepare` read it: a new model and a chat template are what it has left in the store."""
    changed: dict[str, Any] = {}
    if spec.base_model == NEW_MODEL:
        changed = {"base_model": store.address("prepare", prepared, NEW_BASE), "new_model": NewModelSpec()}
    if spec.data.chat_template is not None:
        template = store.address("prepare", prepared, CHAT_TEMPLATE)
        changed["data"] = spec.data.model_copy(update={"chat_template": template})
    return spec.model_copy(update=changed)


def _reference_settings(spec: PipelineSpec) -> dict[str, Any]:
    """Nothing of what training does with the values: a change of beta computes none again."""
    objective = spec.train.objective
    settings: dict[str, Any] = {"computes": objective.reference, "precision": spec.train.precision}
    if isinstance(objective, DistillSpec):
        return {**settings, "model": base.identity(objective.teacher), "top_k": objective.top_k}
    if isinstance(objective, DistillRepliesSpec):
        most = {"max_reply_tokens": objective.max_reply_tokens}
        return {**settings, "model": base.identity(objective.teacher), **most}
    if isinstance(objective, SpinSpec):
        settings["max_reply_tokens"] = objective.max_reply_tokens
    return {**settings, "model": _base(spec)}


def _tune_settings(spec: PipelineSpec) -> dict[str, Any]:
    assert spec.tune is not None
    return {"tune": spec.tune.result_fields(), **_train_settings(spec)}


def _train_settings(spec: PipelineSpec) -> dict[str, Any]:
    return {"train": spec.train.result_fields(), "base_model": _base(spec)}


def _evaluate_settings(spec: PipelineSpec) -> dict[str, Any]:
    section = spec.evaluate.result_fields()
    if not isinstance(spec.train.objective, AdversarialSpec):
        del section["pair"]
    if spec.evaluate.questions is not None:
        section["questions"] = _fingerprint_of("evaluate.questions", spec.evaluate.questions)
    return {"evaluate": section}


def _fingerprint_of(field: str, uri: str) -> str:
    """What a file that the spec names has in it; raises StageFailed with the field's name."""
    filesystem, path = open_uri(uri, patient=False)
    try:
        return fingerprint(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"{field}: cannot read {without_secrets(uri)}: {error}") from error


def _optimize_settings(spec: PipelineSpec) -> dict[str, Any]:
    return {"optimize": spec.optimize.result_fields(), "for_openvino": spec.serve.may_use_openvino}


def step_plan(train: TrainSpec, lengths: Sequence[int], weights: Sequence[int]) -> "StepPlan":
    """Which rows of the corpus, of these lengths and weights, every step reads."""
    from models.packing import StepPlan

    return StepPlan(
        lengths, weights, train.pass_tokens, train.most_workers, gradient_accumulation=train.passes, seed=train.seed
    )


def num_steps(train: TrainSpec, steps_per_epoch: int) -> int:
    """Optimizer steps that `epochs` and `max_steps` come to."""
    steps = max(1, round(train.epochs * steps_per_epoch))
    return min(steps, train.max_steps) if train.max_steps else steps


STAGES = (
    Stage("prepare", 3, (), _prepare_settings, "conversations to token shards (Ray Data)"),
    Stage(
        "reference", 1, ("prepare",), _reference_settings, "reference values for the objective (Ray Data)",
        is_needed=lambda spec: spec.train.objective.reference != "none",
    ),
    Stage(
        "tune", 1, ("prepare", "reference"), _tune_settings, "search settings of train (Ray Tune)",
        is_needed=lambda spec: spec.tune is not None,
    ),
    Stage("train", 1, ("prepare", "reference", "tune"), _train_settings, "fine-tune (Ray Train, DeepSpeed)"),
    Stage("evaluate", 1, ("prepare", "train"), _evaluate_settings, "tuned against base (Ray Data)"),
    Stage("optimize", 3, ("train",), _optimize_settings, "checkpoint to release"),
)  # fmt: skip
# The last step keeps no artifact but a living endpoint: workflows/deploy.py.
STAGE_NAMES = (*(stage.name for stage in STAGES), "deploy")


@dataclass(frozen=True)
class StageState:
    """A stage before a run: its key, its finished artifact if there is one, and else why it will run."""

    stage: Stage
    key: str
    settings: dict[str, Any]
    artifact: Artifact | None
    reason: str


def examine(spec: PipelineSpec, store: Store) -> list[StageState]:
    """What is up to date and what will run and why; changes nothing."""
    states: list[StageState] = []
    keys: dict[str, str] = {}
    for stage in STAGES:
        if not stage.is_needed(spec):
            continue
        inputs = {name: keys[name] for name in stage.inputs if name in keys}
        settings = {"version": stage.version, **stage.settings(spec)}
        key = content_key({"stage": stage.name, "inputs": inputs, **settings})
        keys[stage.name] = key
        artifact = store.find(stage.name, key)
        reason = "" if artifact else _why(stage, settings, inputs, spec, store, states)
        states.append(StageState(stage, key, settings, artifact, reason))
    return states


def _why(
    stage: Stage,
    settings: dict[str, Any],
    inputs: dict[str, str],
    spec: PipelineSpec,
    store: Store,
    before: list[StageState],
) -> str:
    waiting = [state.stage.name for state in before if state.stage.name in inputs and state.artifact is None]
    if waiting:
        return f"{' and '.join(waiting)} will run"
    mine = [artifact for artifact in store.all_of(stage.name) if artifact.pipeline == spec.name]
    if not mine:
        return "not done yet"
    changed = sorted(_differences(mine[-1].settings, settings, ""))
    changed += [f"the {name} artifact" for name, key in inputs.items() if mine[-1].inputs.get(name) != key]
    return f"changed: {', '.join(changed)}" if changed else "not done yet"


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in {*old, *new}:
            found += _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
        return found
    return [] if old == new else [path]


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
        from workflows.readings import known_reading

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
            if state.stage.name == "evaluate" and not artifact.figures["passed"] and not force and last != "evaluate":
                raise GateFailed(f"evaluate: {artifact.figures['verdict']}; --force deploys it all the same")
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
        getattr(stage.module, "tidy", lambda context: None)(context)
        progress.finish(stage.name, figures)
        return artifact


def _run_module(stage: Stage, context: Context) -> dict[str, Any]:
    from ray.data import DataContext
    from ray.exceptions import RayError

    from workflows.cluster import innermost

    # Else Ray Data's words alone reach the driver: what a function of a batch raised is lost on the way.
    DataContext.get_current().raise_original_map_exception = True
    try:
        figures: dict[str, Any] = stage.module.run(context)
    except RayError as error:
        text = innermost(error)
        raise StageFailed(text if isinstance(error, ValueError) else f"{stage.name}: {text}") from error
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
