"""The interface of a stage: what it receives, what it declares, and how it fails."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import RayconteurError

if TYPE_CHECKING:  # the command line takes the names from here, and answers `--help` at once
    from workflows.progress import Progress
    from workflows.record import JsonObject
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
    from workflows.figures import EvaluateFigures

    figures = None if scorecard is None else EvaluateFigures.from_json(scorecard.figures)
    if figures is None or not figures.passed:
        raise GateFailed(f"{where}: {figures.verdict if figures else 'it was never evaluated'}; {fix}")


@dataclass(frozen=True)
class Context:
    """What a stage receives: the spec, where to write, its input artifacts, and the display."""

    spec: "PipelineSpec"
    store: "Store"
    key: str
    inputs: "dict[str, Artifact]"
    progress: "Progress"
    watch: "Callable[[Any], AbstractContextManager[str]]" = lambda search: nullcontext("")
    """shows a running search on a page; gives its address"""
    proxy: "Artifact | None" = None
    """the search of `tune.proxy`, for the stage `tune`"""


Keys = Mapping[str, str]
"""of artifacts, by their stages"""


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    `workflows/stages/<name>.py` has its `run(context) -> figures`, and `tidy(context)` if something can be freed once
    the artifact is complete.
    """

    name: str
    version: int | None
    """incremented when the meaning of the stage's output changes; None where the key is not made of it"""
    inputs: tuple[str, ...]
    """the stages whose artifacts it reads, if the pipeline has them"""
    settings: "Callable[[PipelineSpec], JsonObject]"
    """the part of the spec, and of the files that it names, that determines the output"""
    summary: str
    is_needed: "Callable[[PipelineSpec], bool]" = lambda spec: True
    """whether a pipeline has this stage"""
    also_reads: tuple[str, ...] = ()
    """further stages whose artifacts it reads; its key leaves them out, since the keys of its inputs have theirs"""
    key: "Callable[[PipelineSpec, Keys], str] | None" = None
    """its key, from those of its inputs, where it is not made of its name, settings and inputs"""
    stored: "Callable[[PipelineSpec, Store, Keys], JsonObject]" = lambda spec, store, inputs: {}
    """further settings, that what is in the store determines"""
    find: "Callable[[PipelineSpec, Store, Keys], Artifact | None] | None" = None
    """its artifact, if that is up to date; None where each artifact of its key is"""
    detail: "Callable[[Context], str] | None" = None
    """what the display says of it as it starts, where that is not `summary` and the reason"""
    not_found: str = ""
    """why it will run, where `find` found none"""


DISCRIMINATOR = "discriminator"
"""its folder in the artifacts of `train` and `optimize`, and in a new model if its discriminator differs from it"""

CONTINUED = "continued"
"""the folder of the control, a generator trained by likelihood alone, in the artifact of `train`"""
