"""Whether the pipeline's models on this machine can pack conversations (models/base/packing_check.py)."""

from pathlib import Path

from models.base.load import known_folder
from models.base.packing_check import CannotBeTrained, Reading, reading_of
from workflows.spec import NEW_MODEL, DistillSpec, PipelineSpec
from workflows.stage import StageFailed

_WAYS = {
    "packed": "side by side in a row",
    "padded": "each in its own row, about 1.2 times the time of packed ones",
    "alone": "one after the other, at least 1.1 times the time of packed ones",
}


def known_reading(spec: PipelineSpec) -> Reading | None:
    """How the base model reads conversations; None if it is not on this machine. Raises StageFailed for a base model,
    or a teacher, that cannot be trained.
    """
    found = None if spec.base_model == NEW_MODEL else _reading("base_model", spec.base_model)
    if isinstance(spec.train.objective, DistillSpec):
        _reading("train.objective.teacher", spec.train.objective.teacher)
    return found


def _reading(field: str, name: str) -> Reading | None:
    folder = known_folder(name)
    try:
        return None if folder is None else reading_of(folder)
    except CannotBeTrained as error:
        raise StageFailed(str(error).replace("base_model:", f"{field}:", 1)) from None


def reading_text(reading: Reading) -> str:
    """The reading as a sentence."""
    why = f"; packed, {reading.why}" if reading.why else ""
    return f"conversations are read {_WAYS[reading.how]}{why} (docs/architectures.md)"


def note_of(folder: Path) -> str | None:
    """A training's note about a model that cannot pack conversations."""
    reading = reading_of(folder)
    return None if reading.how == "packed" else f"train: {reading_text(reading)}"
