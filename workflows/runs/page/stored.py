"""What the pages read from the store."""

import json

from workflows.scorecard.records import Scorecard, ScoredItem
from workflows.stage import STAGE_NAMES
from workflows.store import Artifact, RunRecord, Store
from workflows.training.history import HISTORY, History

_ITEMS = "items.jsonl"


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
    try:
        with store.filesystem.open_input_stream(store.path("evaluate", key, _ITEMS)) as stream:
            lines = stream.read().decode().splitlines()
    except FileNotFoundError:
        return []
    return [ScoredItem.from_json(json.loads(line)) for line in lines]


def read_history(store: Store, artifact: Artifact) -> History:
    """The history of a training."""
    with store.filesystem.open_input_stream(store.path("train", artifact.key, HISTORY)) as stream:
        return History(stream.read().decode())
