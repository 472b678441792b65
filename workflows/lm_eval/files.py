"""What of `evaluate.lm_eval` decides the key of evaluate's artifact; found without lm-eval itself, which is slow to
import.
"""

import importlib.metadata
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs

from workflows.record import JsonObject
from workflows.spec import EvaluateSpec, LmEvalSpec
from workflows.stage import StageFailed
from workflows.store import fingerprint

_MISSING = (
    "{field}: lm-eval is not installed here; run pip install -c constraints.txt 'rayconteur[lm-eval]', or remove the "
    "field"
)
_CACHES = ("__pycache__", ".ipynb_checkpoints")


def entries(evaluate: EvaluateSpec) -> Iterator[tuple[str, LmEvalSpec]]:
    """Each entry with its dotted field."""
    for index, entry in enumerate(evaluate.lm_eval):
        yield f"evaluate.lm_eval.{index}", entry


def lm_eval_settings(evaluate: EvaluateSpec) -> JsonObject:
    """What changes the results: lm-eval's version, and of each entry its fields and the content of its folder.

    Raises StageFailed if lm-eval is missing, or a folder.
    """
    return {"version": lm_eval_version(), "tasks": [_settings(entry, field) for field, entry in entries(evaluate)]}


def lm_eval_version() -> str:
    """Raises StageFailed if it is not installed."""
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        raise StageFailed(_MISSING.format(field="evaluate.lm_eval")) from None


def _settings(entry: LmEvalSpec, field: str) -> JsonObject:
    if not entry.is_folder:
        return entry.result_fields()
    if "://" in entry.task:
        raise StageFailed(f"{field}.task: got {entry.task}; lm-eval reads tasks from this machine: copy the folder")
    local = pa.fs.LocalFileSystem()
    try:
        infos = local.get_file_info(pa.fs.FileSelector(entry.task, recursive=True))
        files = {
            info.path.removeprefix(entry.task).lstrip("/"): fingerprint(local, info.path)
            for info in infos
            if info.is_file and not any(f"/{name}/" in info.path for name in _CACHES)
        }
    except OSError as error:
        raise StageFailed(f"{field}.task: cannot read the folder {entry.task}: {error}") from error
    if not any(name.endswith(".yaml") for name in files):
        raise StageFailed(f"{field}.task: the folder {entry.task} has no task (*.yaml); write one, or give its name")
    return {**entry.result_fields(), "task": dict(sorted(files.items()))}
