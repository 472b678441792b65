"""Which stages of a pipeline are up to date, and which will run and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from workflows.record import JsonObject
from workflows.runs.order import stages_of
from workflows.spec import PipelineSpec
from workflows.stage import Keys, Stage
from workflows.store import Artifact, Store, content_key


@dataclass(frozen=True)
class StageState:
    """A stage before a run: its key, and its finished artifact or the reason why it will run."""

    stage: Stage
    key: str
    settings: JsonObject
    inputs: Keys
    artifact: Artifact | None
    reason: str

    def find(self, spec: PipelineSpec, store: Store) -> Artifact | None:
        """Its present artifact, if that is up to date."""
        return _find(self.stage, self.key, self.inputs, spec, store)


def examine(spec: PipelineSpec, store: Store, last: str = "deploy") -> list[StageState]:
    """The state of every stage up to `last`; changes nothing."""
    states: list[StageState] = []
    keys: dict[str, str] = {}
    stages = stages_of(spec)
    for stage in stages[: [stage.name for stage in stages].index(last) + 1]:
        if not stage.is_needed(spec):
            continue
        inputs = {name: keys[name] for name in stage.inputs if name in keys}
        version = {} if stage.version is None else {"version": stage.version}
        settings = {**version, **stage.settings(spec), **stage.stored(spec, store, inputs)}
        made_of = {"stage": stage.name, "inputs": inputs, **settings}
        key = stage.key(spec, inputs) if stage.key else content_key(made_of)
        keys[stage.name] = key
        artifact = _find(stage, key, inputs, spec, store)
        reason = "" if artifact else stage.not_found or _why(stage, settings, inputs, spec, store, states)
        states.append(StageState(stage, key, settings, inputs, artifact, reason))
    return states


def _find(stage: Stage, key: str, inputs: Keys, spec: PipelineSpec, store: Store) -> Artifact | None:
    return stage.find(spec, store, inputs) if stage.find else store.find(stage.name, key)


def _why(
    stage: Stage,
    settings: JsonObject,
    inputs: Keys,
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


def _differences(old: object, new: object, path: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in {*old, *new}:
            found += _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
        return found
    return [] if old == new else [path]
