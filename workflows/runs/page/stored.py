"""What the pages read from the store."""

import json

from workflows.judge.records import JudgedItem
from workflows.scorecard.records import Scorecard, ScoredItem
from workflows.stage import STAGE_NAMES
from workflows.store import Artifact, RunRecord, Store
from workflows.training.history import HISTORY, History

_ITEMS, _JUDGED = "items.jsonl", "judged.jsonl"


def run_before(store: Store, record: RunRecord) -> RunRecord | None:
    """The run of the same pipeline that started last before this one."""
    earlier = [each for each in store.runs() if each.pipeline == record.pipeline and each.started < record.started]
    return earlier[-1] if earlier else None


def artifacts_of(store: Store, record: RunRecord) -> dict[str, Artifact]:
    """The artifacts of the run's stages, in their order, and the deployment of its release."""
    found = {name: store.find(name, entry.key) for name, entry in record.stages.items()}
    release = record.key_of("optimize")
    endpoints = [artifact for artifact in store.all_of("deploy") if artifact.inputs.get("optimize") == release]
    if release and endpoints:
        found["deploy"] = endpoints[-1]
    return {name: artifact for name in STAGE_NAMES if (artifact := found.get(name)) is not None}


def read_scorecard(store: Store, artifact: Artifact) -> Scorecard:
    """scorecard.json of an evaluation, or its figures alone if an earlier version has made it."""
    found = store.read_json(store.path("evaluate", artifact.key, "scorecard.json"))
    return Scorecard.from_json(found or artifact.figures)


def read_items(store: Store, key: str) -> list[ScoredItem]:
    """The items of the suites of an evaluation; none if it had no suites."""
    return [ScoredItem.from_json(json.loads(line)) for line in _lines(store, key, _ITEMS)]


def read_judged(store: Store, key: str) -> list[JudgedItem]:
    """What the judge of an evaluation found of each item; none if it had no judge."""
    return [JudgedItem.from_json(json.loads(line)) for line in _lines(store, key, _JUDGED)]


def _lines(store: Store, key: str, name: str) -> list[str]:
    try:
        with store.filesystem.open_input_stream(store.path("evaluate", key, name)) as stream:
            return str(stream.read().decode()).split("\n")[:-1]
    except FileNotFoundError:
        return []


def read_history(store: Store, artifact: Artifact) -> History:
    """The history of a training."""
    with store.filesystem.open_input_stream(store.path("train", artifact.key, HISTORY)) as stream:
        return History(stream.read().decode())
