"""What all trainings on one corpus read.

inputs = inputs_of(spec, {"prepare": key})
"""

from collections.abc import Mapping
from dataclasses import dataclass

from workflows.corpus.files.sources import source_files
from workflows.spec import PipelineSpec


@dataclass(frozen=True)
class TrainingInputs:
    """The corpus and its reference values."""

    keys: Mapping[str, str]
    """the keys of the artifacts, by stage"""
    entries: tuple[int, ...] = ()
    """of each file of the corpus, the number of its entry in `data.sources`; empty for a single entry"""


def inputs_of(spec: PipelineSpec, keys: Mapping[str, str]) -> TrainingInputs:
    """The inputs of trainings on the artifacts `keys`, by stage."""
    if len(spec.data.sources) == 1:
        return TrainingInputs(keys)
    return TrainingInputs(keys, tuple(file.entry for file in source_files(spec)))
