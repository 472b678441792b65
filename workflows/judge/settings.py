"""What of a judge decides the key of evaluate's artifact, and its release in the store."""

import pyarrow as pa

from models.files import open_uri
from workflows.judge.labels import read_labels
from workflows.judge.prompt import read_prompt
from workflows.record import JsonObject
from workflows.spec import JudgeSpec
from workflows.stage import StageFailed
from workflows.store import Artifact, Store, content_key, fingerprint, without_secrets


def judge_settings(spec: JudgeSpec) -> JsonObject:
    """Its fields, the text of its prompt, and the content of its labels.

    Raises StageFailed for files that cannot be used: the key is needed before any stage runs, and a broken line must
    not be found after a training.
    """
    settings = {**spec.result_fields(), "prompt": content_key({"prompt": read_prompt(spec).template})}
    if spec.labels is not None:
        read_labels(spec.labels)
        settings["labels"] = _fingerprint_of(spec.labels)
    return settings


def find_release(store: Store, name: str) -> Artifact:
    """The release with this key, or the latest one of this pipeline; raises StageFailed."""
    found = store.find("optimize", name)
    if found is not None:
        return found
    releases = store.all_of("optimize")
    named = [release for release in releases if release.pipeline == name]
    if named:
        return named[-1]
    known = ", ".join(sorted({release.pipeline for release in releases})) or "none yet"
    raise StageFailed(
        f"evaluate.judge.release: the store has no release {name!r}, neither as a key nor of a pipeline of that "
        f"name; pipelines with releases: {known}"
    )


def _fingerprint_of(uri: str) -> str:
    try:
        return fingerprint(*open_uri(uri, patient=False))
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"evaluate.judge.labels: cannot read {without_secrets(uri)}: {error}") from error
