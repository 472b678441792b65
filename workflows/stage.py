"""The interface of a stage: what it receives, what it declares, and how it fails."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import RayconteurError

if TYPE_CHECKING:  # the command line takes the names from here, and answers `--help` at once
    from workflows.progress import Progress
    from workflows.spec import PipelineSpec
    from workflows.store import Artifact, Store

STAGE_NAMES = ("prepare", "reference", "tune", "train", "evaluate", "optimize", "deploy")
"""in their order; workflows/runs/order.py says what each of them depends on"""


class StageFailed(RayconteurError):
    """A stage could not do its work; the text is for the user."""


class GateFailed(StageFailed):
    """The checkpoint did not pass the scorecard."""


def check_gate(scorecard: "Artifact | None", where: str, fix: str) -> None:
    """Raise GateFailed for a model whose scorecard did not pass, or that has none; `fix` says how to go on anyway."""
    if scorecard is None or not scorecard.figures["passed"]:
        why = scorecard.figures["verdict"] if scorecard else "it was never evaluated"
        raise GateFailed(f"{where}: {why}; {fix}")


@dataclass(frozen=True)
class Context:
    """What a stage receives: the spec, where to write, its input artifacts, and the display."""

    spec: "PipelineSpec"
    store: "Store"
    key: str
    inputs: "dict[str, Artifact]"
    progress: "Progress"


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    `workflows/stages/<name>.py` has its `run(context) -> figures`, and `tidy(context)` where something can be let go
    of once the artifact is whole.
    """

    name: str
    version: int
    """raised when the stage's output changes its meaning"""
    inputs: tuple[str, ...]
    """the stages whose artifacts it reads, if the pipeline has them"""
    settings: "Callable[[PipelineSpec], dict[str, Any]]"
    """the part of the spec, and of the files that it names, that determines the output"""
    summary: str
    is_needed: "Callable[[PipelineSpec], bool]" = lambda spec: True
    """whether a pipeline has this stage"""


DISCRIMINATOR = "discriminator"
"""its folder in the artifacts of `train` and `optimize`, and in a new model's, if it begins otherwise than that"""

CONTINUED = "continued"
"""the folder of what it is compared to, a generator by likelihood alone, in the artifact of `train`"""

SHIPPED = "shipped"
"""what the figures of a release with a discriminator say of it"""
