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
"""in their order; workflows/runs/order.py has the dependencies of each"""


class StageFailed(RayconteurError):
    """A stage cannot do its work; the text tells the user why."""


class GateFailed(StageFailed):
    """The checkpoint did not pass the scorecard."""


def check_gate(scorecard: "Artifact | None", where: str, fix: str) -> None:
    """Raise GateFailed unless the model has a scorecard that passed; `fix` is how to continue anyway."""
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

    `workflows/stages/<name>.py` has its `run(context) -> figures`, and `tidy(context)` if something can be freed once
    the artifact is complete.
    """

    name: str
    version: int
    """incremented when the meaning of the stage's output changes"""
    inputs: tuple[str, ...]
    """the stages whose artifacts it reads, if the pipeline has them"""
    settings: "Callable[[PipelineSpec], dict[str, Any]]"
    """the part of the spec, and of the files that it names, that determines the output"""
    summary: str
    is_needed: "Callable[[PipelineSpec], bool]" = lambda spec: True
    """whether a pipeline has this stage"""


DISCRIMINATOR = "discriminator"
"""its folder in the artifacts of `train` and `optimize`, and in a new model if its discriminator differs from it"""

CONTINUED = "continued"
"""the folder of the control, a generator trained by likelihood alone, in the artifact of `train`"""

SHIPPED = "shipped"
"""the figure of a release that includes a discriminator"""
