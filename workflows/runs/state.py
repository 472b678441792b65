"""What of a pipeline is up to date, and what will run and why."""

from dataclasses import dataclass
from typing import Any

from workflows.runs.order import STAGES
from workflows.spec import PipelineSpec
from workflows.stage import Stage
from workflows.store import Artifact, Store, content_key


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
